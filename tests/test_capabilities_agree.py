"""The instruction sets of the machine agree with each other, in processes of their own."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import capability_calls
import pytest
import torch
from capability_calls import CALLS, make_call, results
from helpers import FLOOR

from attention_ext import _C, reference

pytestmark = pytest.mark.cpu_only("about instruction sets")

CAPABILITIES = _C.cpu_capabilities()
PAIRS = [*combinations(CAPABILITIES, 2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """capability -> results of all CALLS"""
    root = Path(capability_calls.__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    by_capability = {}
    for capability in CAPABILITIES:
        file = tmp_path_factory.mktemp("capabilities") / capability
        env = os.environ | {"ATTENTION_EXT_CPU_CAPABILITY": capability, "PYTHONPATH": path}
        command = [sys.executable, capability_calls.__file__, str(file)]
        ended = subprocess.run(command, env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        ran_on, by_capability[capability] = torch.load(file)
        assert ran_on == capability
    return by_capability


@pytest.mark.skipif(not PAIRS, reason="this machine has one instruction set only")
@pytest.mark.parametrize("number", range(len(CALLS)), ids=[f"{case}-{dtype}" for case, dtype in CALLS])
def test_instruction_sets_agree(number, found):
    # Two that err by as much as one may can be twice that apart; half of it is allowed.
    case, dtype = CALLS[number]
    call = make_call(case, dtype)
    exact = results(reference.attention, call, torch.float64)
    plain = results(reference.attention, call)
    for one, other in PAIRS:
        for name, e in exact.items():
            a, b = (found[capability][number][name].double() for capability in (one, other))
            finite = e.isfinite()
            assert torch.equal(a[~finite], b[~finite]), (
                f"{name}: {one} and {other} differ where lse is infinite"
            )
            size = max(float(e[finite].abs().max()), 1.0)
            plain_error = float((plain[name].double() - e)[finite].abs().max())
            allowed = 2 * plain_error + FLOOR[plain[name].dtype] * size
            apart = float((a - b)[finite].abs().max())
            assert apart <= allowed, f"{name}: {one} and {other} are {apart:.3g} apart, allowed {allowed:.3g}"
