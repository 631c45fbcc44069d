"""Thread CPU time of ours and of every peer, interleaved, beside the machine's own peak."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from attention_ext import _C

from .agreement import check_agreement
from .baselines import CONTENDERS, REFERENCE
from .cases import Case
from .clocks import Sampler
from .contender import Contender, Inputs, NotHere, Results, make_call, make_inputs
from .effort import Effort

__all__ = ["check_peer", "chosen_peers", "conditions", "measure_time", "no_progress", "peak_dtype", "summary"]

Progress = Callable[[str], None]
LONGEST_PROBE = 0.1


def no_progress(_: str) -> None:
    pass


@contextmanager
def conditions(case: Case) -> Iterator[None]:
    """The threads and the grad mode of a case; no garbage collection in between."""
    threads = torch.get_num_threads()
    gc.collect()
    gc.disable()
    torch.set_num_threads(case.threads)
    try:
        with torch.set_grad_enabled(case.grad):
            yield
    finally:
        torch.set_num_threads(threads)
        gc.enable()


def chosen_peers(case: Case, effort: Effort) -> dict[str, Contender]:
    known = CONTENDERS[case.op]
    return {name: known[name] for name in case.peers if effort.complete or known[name].quick}


def summary(samples: list[float]) -> dict[str, Any]:
    return {
        "seconds_min": min(samples),
        "seconds_median": statistics.median(samples),
        "samples": [float(f"{s:.5g}") for s in samples],
    }


def rounds(seconds_each: float, effort: Effort) -> int:
    wanted = int(effort.seconds / max(seconds_each, 1e-6))
    return max(effort.min_rounds, min(effort.max_rounds, wanted))


def check_peer(case: Case, peer: Contender, ours: Results, theirs: Results, inputs: Inputs) -> float:
    """The difference between a peer's results and ours. Raises Disagreement.

    If the peer is ours doing another case, it is the one between its results and the reference's of that.
    """
    if peer.instead is None:
        return check_agreement(peer.title, ours, theirs, case.dtype)
    reference = CONTENDERS[case.op][REFERENCE[case.op]]
    right = make_call(case, replace(reference, instead=peer.instead), inputs)()
    return check_agreement(f"{reference.title}, of {peer.title}", theirs, right, case.dtype)


def peak_dtype(case: Case) -> str:
    """What the machine multiplies in: float16 is computed in float32, and bfloat16 where it must be."""
    return "float32" if case.dtype == "float16" else case.dtype


def peak_probe(case: Case, effort: Effort, seconds: float) -> Callable[[], float]:
    """Samples the machine's peak that bounds this case, of one thread: operations or bytes a second.

    FMA samples last as long as ours, within limits: for a few milliseconds a core may run faster than it can
    sustain.
    """
    if case.bound == "bandwidth":
        return lambda: 1e9 * _C.read_bandwidth(case.tensor_bytes, effort.probe_seconds)
    if case.bound == "update":
        return lambda: 1e9 * _C.update_bandwidth(case.tensor_bytes // 2, effort.probe_seconds)
    dtype = peak_dtype(case)
    capability = _C.cpu_capability()
    length = min(max(seconds, effort.probe_seconds), LONGEST_PROBE)
    gflop = length * _C.fma_peak(capability, dtype, effort.probe_seconds)

    def sample() -> float:
        start = time.thread_time()
        done = _C.fma_work(capability, dtype, gflop)
        return 1e9 * done / (time.thread_time() - start)

    return sample


def measure_time(case: Case, effort: Effort, progress: Progress) -> dict[str, Any]:
    """Figures of a case of kind "time". Raises Disagreement or WorkElsewhere: then there are none."""
    inputs = make_inputs(case)
    peers = chosen_peers(case, effort)
    with conditions(case):
        progress("agreement")
        call = make_call(case, CONTENDERS[case.op]["ours"], inputs)
        results, samplers = call(), {"ours": Sampler.calibrated(call, effort.sample_seconds)}
        differences, left_out = {}, {}
        for name, peer in peers.items():
            try:
                call = make_call(case, peer, inputs)
            except NotHere as reason:
                left_out[name] = str(reason)
                continue
            differences[name] = check_peer(case, peer, results, call(), inputs)
            samplers[name] = Sampler.calibrated(call, effort.sample_seconds)
        del results
        names, peaks = list(samplers), []
        probe = peak_probe(case, effort, samplers["ours"].estimate)
        samples: dict[str, list[float]] = {name: [] for name in names}
        total = rounds(sum(s.seconds for s in samplers.values()) + LONGEST_PROBE, effort)
        for done in range(total):
            progress(f"round {done + 1} of {total}")
            # Nobody has the first place, or the same predecessor, every time.
            for name in names if done % 2 else reversed(names):
                samples[name].append(samplers[name].sample())
            peaks.append(probe())
    return {
        "clock": "thread CPU time",
        "peak_rate": max(peaks),
        "peak_rate_median": statistics.median(peaks),
        "differences": differences,
        "left_out": left_out,
        "contenders": {name: summary(taken) for name, taken in samples.items()},
    }
