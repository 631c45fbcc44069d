"""One case on the GPU: agreement, then the time of ours and of every peer, then what each takes of memory."""

from __future__ import annotations

import gc
import statistics
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ..agreement import Disagreement, check_agreement
from ..cases import Case
from ..contender import Call, Inputs, NotHere, Results, make_call, make_inputs
from ..figures import judge
from . import clock, gpu
from .peers import CONTENDERS, FORMULAS

__all__ = ["FULL", "QUICK", "Effort", "check_small", "entry_of", "inputs_of", "measure", "results_of_peers"]

SMALL = 256  # positions that the formula in float64 checks


@dataclass(frozen=True)
class Effort:
    """seconds: about how long the rounds of a case take, between least and most of them.

    complete: peers that take long to get ready, too.
    """

    seconds: float
    least: int
    most: int
    complete: bool


FULL = Effort(1.0, 10, 200, True)
QUICK = Effort(0.2, 5, 20, False)


def inputs_of(case: Case, device: str) -> Inputs:
    inputs = make_inputs(case, device)
    if case.op != "delta_rule":
        return inputs
    key = F.normalize(inputs.tensors["key"].float(), dim=-1).to(inputs.tensors["key"].dtype)
    return Inputs(inputs.tensors | {"key": key}, inputs.grad_out)


def small(case: Case) -> Case:
    """The case with few heads and positions, its mask in proportion."""
    s = case.shape
    group = s.H // s.Hkv
    shape = replace(s, B=1, H=2 * group, Hkv=2, Lq=min(s.Lq, SMALL), Lk=min(s.Lk, SMALL))
    passes = "both" if case.grad else "forward"
    return replace(case, shape=shape, mask=case.mask and case.mask.shrunk(SMALL), passes=passes)


def check_small(case: Case, device: str) -> float:
    """The difference between ours and the formula in float64 on a small relative of the case.

    Raises Disagreement.
    """
    case = small(case)
    inputs, (ours, formula) = inputs_of(case, device), (CONTENDERS[case.op]["ours"], FORMULAS[case.op])
    with torch.set_grad_enabled(case.grad):
        found, right = (make_call(case, contender, inputs)() for contender in (ours, formula))
    return check_agreement(formula.title, found, right, case.dtype)


def results_of_peers(
    case: Case, inputs: Inputs, ours: Results, effort: Effort
) -> tuple[dict[str, Call], dict[str, float], dict[str, str]]:
    """The calls of the peers that take part and agree with ours, their differences, and why others don't.

    Raises Disagreement.
    """
    calls, differences, left_out = {}, {}, {}
    for name in case.peers:
        peer = CONTENDERS[case.op][name]
        if not (effort.complete or peer.quick):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call = make_call(case, peer, inputs)
                theirs = call()
        except Exception as error:  # a backend refuses in its own way: the reason is kept
            lines = str(error).strip().splitlines() or [type(error).__name__]
            left_out[name] = lines[0] if isinstance(error, NotHere) else f"{type(error).__name__}: {lines[0]}"
            continue
        differences[name] = check_agreement(peer.title, ours, theirs, case.dtype)
        calls[name] = call
    return calls, differences, left_out


def measure(case: Case, effort: Effort, peak: Callable[[str], float]) -> dict[str, Any]:
    """The entry of a case. Wrong results and errors of ours become an entry without figures."""
    try:
        measured = measure_time(case, effort)
    except Disagreement as difference:
        return no_entry(case, "disagrees", str(difference))
    except Exception as error:
        traceback.print_exc()
        return no_entry(case, "failed", f"{type(error).__name__}: {error}")
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return entry_of(case, measured, peak(case.dtype))


def measure_time(case: Case, effort: Effort) -> dict[str, Any]:
    difference = check_small(case, "cuda")
    inputs = inputs_of(case, "cuda")
    with torch.set_grad_enabled(case.grad):
        ours = make_call(case, CONTENDERS[case.op]["ours"], inputs)
        calls, differences, left_out = results_of_peers(case, inputs, ours(), effort)
        calls = {"ours": ours} | calls
        before = gpu.clocks()
        samples = clock.interleaved(list(calls.values()), effort.seconds, effort.least, effort.most)
        memory = {name: memory_of(call) for name, call in calls.items()}
    return {
        "clock": "CUDA events, L2 cache flushed",
        "clocks": {"before": before, "after": gpu.clocks()},
        "differences": {"formula": difference} | differences,
        "left_out": left_out,
        "contenders": {
            name: summary(taken) | {"memory": {"call": memory[name]}}
            for name, taken in zip(calls, samples, strict=True)
        },
    }


def summary(samples: list[float]) -> dict[str, Any]:
    return {
        "seconds_min": min(samples),
        "seconds_median": statistics.median(samples),
        "samples": [float(f"{s:.5g}") for s in samples],
    }


def memory_of(call: Call) -> int:
    """Bytes at the peak of a call beyond what was there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def describe_case(case: Case) -> dict[str, Any]:
    names = ("name", "title", "op", "group", "dtype", "passes", "bound")
    told = {name: getattr(case, name) for name in names}
    mask = None if case.mask is None else asdict(case.mask)
    sizes = {"shape": str(case.shape), "lengths": [case.shape.Lq, case.shape.Lk], "mask": mask}
    return told | sizes | {"flops": case.flops, "tensor_bytes": case.tensor_bytes, "capability": "generic"}


def no_entry(case: Case, status: str, reason: str) -> dict[str, Any]:
    """A case without figures. status: "disagrees" or "failed"."""
    unjudged = {"value": None, "verdict": "not judged", "reason": reason}
    requirements = [asdict(r) | {"at_most": r.at_most} | unjudged for r in case.requirements]
    return describe_case(case) | {"status": status, "reason": reason, "requirements": requirements}


def entry_of(case: Case, measured: dict[str, Any], peak_rate: float) -> dict[str, Any]:
    """Adds to what was measured: titles, rates, shares of the peak, ratios, verdicts."""
    entry = describe_case(case) | {"status": "measured", "peak_rate": peak_rate} | measured
    work = case.flops if case.bound == "fma" else case.tensor_bytes
    mine = entry["contenders"]["ours"]
    for name, figures in entry["contenders"].items():
        figures["title"] = CONTENDERS[case.op][name].title
        figures["rate"] = work / figures["seconds_min"]
        if case.bound == "fma":
            figures["share"] = figures["rate"] / peak_rate
    entry["ratios"] = {
        name: {key: figures[f"seconds_{key}"] / mine[f"seconds_{key}"] for key in ("min", "median")}
        for name, figures in entry["contenders"].items()
        if name != "ours"
    }
    entry["requirements"] = [judge(requirement, entry) for requirement in case.requirements]
    return entry
