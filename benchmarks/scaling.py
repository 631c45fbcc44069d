"""Wall time on one thread and on several, beside an FMA loop that does the same: the control."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from attention_ext import _C

from .agreement import check_identical
from .baselines import CONTENDERS
from .cases import Case
from .clocks import wall_seconds
from .contender import Results, make_call, make_inputs
from .effort import Effort
from .measure import Progress, check_peer, chosen_peers, conditions, peak_dtype, rounds, summary

__all__ = ["measure_scaling"]


def on_threads(threads: int, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        torch.set_num_threads(threads)
        return call()

    return run


def measure_scaling(case: Case, effort: Effort, progress: Progress) -> dict[str, Any]:
    """Figures of a case of kind "scaling". Raises Disagreement if threads or a peer change the result."""
    inputs, capability = make_inputs(case), _C.cpu_capability()
    contenders = {"ours": CONTENDERS[case.op]["ours"], **chosen_peers(case, effort)}
    with conditions(case), ThreadPoolExecutor(case.threads) as pool:
        progress("agreement")
        calls, differences = {}, {}
        results: Results = {}
        for name, contender in contenders.items():
            call = make_call(case, contender, inputs)
            calls[name, 1], calls[name, case.threads] = on_threads(1, call), on_threads(case.threads, call)
            if name == "ours":
                results = calls[name, 1]()
                check_identical(f"on {case.threads} threads as on 1", results, calls[name, case.threads]())
            else:
                differences[name] = check_peer(case, contender, results, calls[name, 1](), inputs)
        del results

        # The control works about as long as ours does.
        dtype = peak_dtype(case)
        work = wall_seconds(calls["ours", 1]) * _C.fma_peak(capability, dtype, effort.probe_seconds)

        def control(threads: int) -> None:
            parts = [pool.submit(_C.fma_work, capability, dtype, work / threads) for _ in range(threads)]
            for part in parts:
                part.result()

        for threads in (1, case.threads):
            calls["control", threads] = lambda threads=threads: control(threads)
        samples: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
        # Of each an untimed call first: the threads are awake then.
        total = rounds(sum(wall_seconds(call) for call in calls.values()), effort)
        for done in range(total):
            progress(f"round {done + 1} of {total}")
            for key, call in calls.items():
                call()
                samples[key].append(wall_seconds(call))

    best = {key: min(taken) for key, taken in samples.items()}
    names = [name for name, threads in calls if threads == 1]
    return {
        "clock": "wall time",
        "peak_rate": 1e9 * work / best["control", case.threads],
        "differences": differences,
        "contenders": {name: summary(samples[name, case.threads]) for name in contenders},
        "one_thread": {name: summary(samples[name, 1]) for name in contenders},
        "scaling": {name: best[name, 1] / best[name, case.threads] for name in names},
    }
