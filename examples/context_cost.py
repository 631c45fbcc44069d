"""What a training step of one attention layer costs at a length: seconds and bytes."""

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from byte_model import EMBED, KINDS, attend
from long_window import peak_memory

WARM_UP = 64  # tokens


def costs(kind: str, lengths: list[int], threads: int, least_seconds: float) -> Iterator[tuple[float, int]]:
    """(seconds, bytes beyond what the process holds) for each length, ascending, in a process of its own.

    Steps are repeated for `least_seconds`; the shortest counts.
    """
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (threads,)) as pool:
        pool.apply(_measure, (kind, WARM_UP, 0.0))
        _, before = pool.apply(_measure, (kind, WARM_UP, 0.0))
        for length in lengths:
            seconds, peak = pool.apply(_measure, (kind, length, least_seconds))
            yield seconds, peak - before


def _measure(kind: str, length: int, least_seconds: float) -> tuple[float, int]:
    """Seconds and peak memory of forward and backward, in this process."""
    with contextlib.suppress(OSError):  # where it isn't allowed, the peak is that of all lengths so far
        Path("/proc/self/clear_refs").write_text("5")
    torch.manual_seed(0)
    layer = KINDS[kind]()
    x = torch.randn(1, length, EMBED, requires_grad=True)
    seconds: list[float] = []
    while not seconds or sum(seconds) < least_seconds:
        start = time.perf_counter()
        attend(kind, layer, x)[0].sum().backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds), peak_memory()
