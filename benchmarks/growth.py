"""How time and peak memory of ours grow with the length."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from .baselines import CONTENDERS
from .cases import Case
from .clocks import Sampler
from .contender import make_call, make_inputs
from .effort import Effort
from .measure import Progress, conditions, rounds, summary
from .memory import measure_memory
from .worker import run_apart

__all__ = ["exponent", "measure_growth"]


def measure_growth(case: Case, effort: Effort, progress: Progress) -> dict[str, Any]:
    """Thread CPU time at every length, interleaved, and peak memory, each in a process of its own."""
    contender = CONTENDERS[case.op]["ours"]
    parts = {N: replace(case, shape=replace(case.shape, Lq=N, Lk=N)) for N in case.lengths}
    samplers, samples = {}, {N: [] for N in parts}
    with conditions(case):
        for N, part in parts.items():
            samplers[N] = Sampler.calibrated(
                make_call(part, contender, make_inputs(part)), effort.sample_seconds
            )
        total = rounds(sum(sampler.seconds for sampler in samplers.values()), effort)
        for done in range(total):
            progress(f"round {done + 1} of {total}")
            for N, sampler in samplers.items():
                samples[N].append(sampler.sample())
    times = {N: summary(taken) for N, taken in samples.items()}
    grown = {"seconds": {N: figures["seconds_min"] for N, figures in times.items()}}
    if effort.complete:
        progress("memory")
        memory = {N: run_apart(measure_memory, part, "ours") for N, part in parts.items()}
        if all(memory.values()):
            grown["bytes"] = {N: figures["call"] for N, figures in memory.items()}
    grown["exponents"] = {name: exponent(values) for name, values in grown.items()}
    return {"clock": "thread CPU time", "contenders": {"ours": times[max(parts)]}, "growth": grown}


def exponent(values: dict[int, float]) -> float:
    """p of the power a * N**p that fits best: least squares of the logarithms."""
    x, y = [math.log(N) for N in values], [math.log(value) for value in values.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)
