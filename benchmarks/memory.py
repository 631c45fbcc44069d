"""Peak memory of one contender's call. To be run in a process that has done nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .agreement import check_agreement
from .baselines import CONTENDERS
from .cases import Case
from .clocks import thread_seconds
from .contender import Inputs, Results, make_call, make_inputs
from .measure import conditions

__all__ = ["measure_memory"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Bytes now (VmRSS), or the most since `forget_peak` (VmHWM). Not ru_maxrss: the parent's is in it."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} has no {field}")


def forget_peak() -> None:
    CLEAR.write_text("5")


def warm_up(case: Case, contender: str) -> None:
    """Loads what a first call loads: code and thread-local buffers are not the call's memory."""
    s, N = case.shape, 256
    mask = None if case.mask is None else case.mask.shrunk(N)
    tiny = replace(case, shape=replace(s, Lq=min(s.Lq, N), Lk=min(s.Lk, N)), mask=mask)
    make_call(tiny, CONTENDERS[case.op][contender], make_inputs(tiny))()


def measure_memory(case: Case, contender: str) -> dict[str, Any] | None:
    """Peak memory of one call, in bytes; None where the system does not tell.

    call    beyond query, key, value and the gradient of out: masks made for the call, out, gradients, scratch
    total   all of it, the inputs too
    With case.tail the results are then compared with a peer's, as far as the last queries decide them.
    """
    if not (STATUS.exists() and CLEAR.exists()):
        return None
    with conditions(case):
        warm_up(case, contender)
        before = resident("VmRSS")
        inputs = make_inputs(case)
        with_inputs = resident("VmRSS")
        forget_peak()
        results: list[Results] = []
        call = make_call(case, CONTENDERS[case.op][contender], inputs)
        seconds = thread_seconds(lambda: results.append(call()))
        peak = resident("VmHWM")
        figures = {"total": peak - before, "call": peak - with_inputs, "seconds": seconds}
        if case.tail:
            figures["difference"] = compare_tail(case, inputs, results[0])
    return figures


def compare_tail(case: Case, inputs: Inputs, results: Results) -> float:
    """Compares with a peer that gets the last queries alone, and the keys they see."""
    reach = case.mask.left if case.mask is not None else None
    N, tail = case.shape.Lq, case.tail
    if case.shape.Lk != N or reach is None or case.mask.right != 0 or tail + reach > N:
        raise ValueError(f"{case.name}: tail needs a causal window and N >= tail + left")
    # Earlier keys stand before the tail; they are seen, but their gradients come from earlier queries too.
    first = N - tail - reach
    part = replace(case, shape=replace(case.shape, Lq=N - first, Lk=N - first))
    cut = {name: x[:, :, first:] for name, x in inputs.tensors.items()}
    grad_out = None if inputs.grad_out is None else inputs.grad_out[:, :, first:]
    peer = CONTENDERS[case.op][case.peers[0]]
    theirs = make_call(part, peer, Inputs(cut, grad_out))()
    ours, theirs = ({name: x[:, :, -tail:] for name, x in each.items()} for each in (results, theirs))
    return check_agreement(peer.title, ours, theirs, case.dtype)
