import json
import os
from pathlib import Path

import cuda_code
import emulation
import pytest


@pytest.fixture
def kernels():
    if reason := emulation.missing():
        pytest.skip(reason)
    return emulation.kernels()


@pytest.fixture(autouse=True)
def installed(kernels):
    """Every test runs the CUDA kernels, and fails where the emulator's checks find something."""
    before = kernels.calls
    kernels.set_schedule(0)
    with kernels.installed():
        yield
    if findings := kernels.findings():
        pytest.fail("\n".join(findings), pytrace=False)
    assert kernels.calls > before, "the test did not run a CUDA kernel"


@pytest.fixture(scope="session", autouse=True)
def launches_keep_to_the_budget():
    """Of threads and shared memory, at the end; a folder in ATTENTION_EXT_LAUNCHES gets what was launched."""
    yield
    if emulation.missing():
        return
    launches = emulation.kernels().launches()
    if folder := os.environ.get("ATTENTION_EXT_LAUNCHES"):
        Path(folder, f"{os.getpid()}.json").write_text(json.dumps(launches))
        return
    budgets = cuda_code.read_budget()
    for name, (threads, shared) in launches.items():
        if budget := budgets.get(name):  # test_cuda_code.py asks for an entry of each
            assert threads == budget["threads"], name
            assert shared <= budget["shared"], name
