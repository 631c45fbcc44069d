"""Samples of a call's time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Sampler", "WorkElsewhere", "wall_seconds"]

ATTEMPTS = 3
WARM_BELOW = 0.25  # a slower call finds its data in no cache anyway


class WorkElsewhere(Exception):
    """A call worked on other threads, which the clock of this one does not see."""


def thread_seconds(call: Callable[[], Any], repetitions: int = 1) -> float:
    """Mean CPU time of the calling thread: what else runs on the machine counts little."""
    for _ in range(ATTEMPTS):
        process, thread = time.process_time(), time.thread_time()
        for _ in range(repetitions):
            call()
        thread, process = time.thread_time() - thread, time.process_time() - process
        if process <= 1.1 * thread + 2e-3:
            return thread / repetitions
        time.sleep(0.02)  # other threads may have had something to finish
    raise WorkElsewhere(f"{process:.4f} s of the process, {thread:.4f} s of this thread")


def wall_seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass
class Sampler:
    """Takes samples of one call, each long enough to be measured; short calls get an untimed one first."""

    call: Callable[[], Any]
    repetitions: int
    estimate: float  # seconds of one call

    @staticmethod
    def calibrated(call: Callable[[], Any], sample_seconds: float) -> Sampler:
        repetitions, estimate = 1, thread_seconds(call)
        while repetitions * estimate < sample_seconds:
            wanted = math.ceil(1.2 * sample_seconds / max(estimate, 1e-7))
            repetitions = max(repetitions + 1, min(wanted, 10 * repetitions))
            estimate = thread_seconds(call, repetitions)
        return Sampler(call, repetitions, estimate)

    @property
    def seconds(self) -> float:
        """About how long a sample takes."""
        return self.estimate * (self.repetitions + (self.estimate < WARM_BELOW))

    def sample(self) -> float:
        if self.estimate < WARM_BELOW:
            self.call()
        return thread_seconds(self.call, self.repetitions)
