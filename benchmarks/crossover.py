"""From which length on ours is faster than its one peer, which computes something else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .baselines import CONTENDERS
from .cases import Case
from .clocks import Sampler
from .contender import make_call, make_inputs
from .effort import Effort
from .measure import Progress, conditions, rounds

__all__ = ["crossover_of", "measure_crossover"]

SHORTEST = 32


def crossover_of(seconds: dict[int, dict[str, float]], peer: str) -> int | None:
    """The shortest length from which on ours is faster; None if it isn't at the longest."""
    found = None
    for length in sorted(seconds, reverse=True):
        if seconds[length]["ours"] > seconds[length][peer]:
            break
        found = length
    return found


def measure_crossover(case: Case, effort: Effort, progress: Progress) -> dict[str, Any]:
    """Thread CPU time at lengths that double, up to that of the case."""
    (peer,) = case.peers
    seconds: dict[int, dict[str, float]] = {}
    length = SHORTEST
    with conditions(case):
        while length <= case.shape.Lq:
            progress(f"length {length}")
            one = replace(case, shape=replace(case.shape, Lq=length, Lk=length))
            inputs = make_inputs(one)
            samplers = {
                name: Sampler.calibrated(
                    make_call(one, CONTENDERS[case.op][name], inputs), effort.sample_seconds
                )
                for name in ("ours", peer)
            }
            total = rounds(8 * sum(s.seconds for s in samplers.values()), effort)
            samples = [{name: s.sample() for name, s in samplers.items()} for _ in range(total)]
            seconds[length] = {name: min(sample[name] for sample in samples) for name in samplers}
            length *= 2
    return {
        "clock": "thread CPU time",
        "lengths": {str(n): times for n, times in seconds.items()},
        "crossover": crossover_of(seconds, peer),
        "contenders": {"ours": {}, peer: {}},
    }
