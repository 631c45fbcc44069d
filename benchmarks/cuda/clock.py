"""Time on the GPU: events around a call, after what was in its L2 cache has been pushed out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["interleaved", "product_rate"]

FLUSHED = 2  # times the L2 cache
SIDE = 8192  # of the product that gives the peak


def interleaved(
    calls: Sequence[Callable[[], object]], seconds: float, least: int, most: int
) -> list[list[float]]:
    """The seconds that each call took, in rounds of one sample of each.

    Rounds go on for about `seconds`, within least and most; nobody has the first place, or the same
    predecessor, every time.
    """
    for call in (*calls, *calls):  # what compiles or chooses an algorithm does it here
        call()
    flush = buffer_to_flush()
    first = [sample(call, flush) for call in calls]
    rounds = max(least, min(most, int(seconds / max(sum(first), 1e-5))))
    samples: list[list[float]] = [[] for _ in calls]
    places = list(range(len(calls)))
    for done in range(rounds):
        for place in places if done % 2 else reversed(places):
            samples[place].append(sample(calls[place], flush))
    return samples


def buffer_to_flush() -> torch.Tensor:
    cache = torch.cuda.get_device_properties().L2_cache_size
    return torch.empty(FLUSHED * cache, dtype=torch.int8, device="cuda")


def sample(call: Callable[[], object], flush: torch.Tensor) -> float:
    """The call is enqueued while the cache is being written: its launches cost no time of the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end)


def product_rate(dtype: torch.dtype) -> float:
    """Operations a second of torch's own product of large matrices: the peak that shares are of."""
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    taken = interleaved([lambda: torch.mm(a, b, out=out)], 0.5, 10, 100)[0]
    return 2.0 * SIDE**3 / min(taken)
