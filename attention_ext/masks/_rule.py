"""A band as a rule that holds for all sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ._lowering import UNBOUNDED


class Rule(NamedTuple):
    """A band, without sizes: lower <= j - p <= upper, and j - p is phase modulo dilation.

    p is i' = i + Lk - Lq, or i where not at_end.
    """

    lower: int
    upper: int
    dilation: int
    phase: int
    at_end: bool

    def band(self, Lq: int, Lk: int) -> list[int]:
        shift = Lk - Lq if self.at_end else 0
        lower, upper = (n if unbounded(n) else n + shift for n in self[:2])
        phase = (self.phase + shift) % self.dilation if self.dilated else 0
        return [lower, upper, self.dilation, phase, 0, 0]

    @property
    def dilated(self) -> bool:
        return self.dilation != 1


def unbounded(n: int) -> bool:
    return isinstance(n, int) and abs(n) == UNBOUNDED


def band_density(rule: Rule, Lq: int, Lk: int) -> float:
    """The share of the pairs that a band without dilation allows."""
    lower, upper = rule.band(Lq, Lk)[:2]
    i = torch.arange(Lq, device="cpu")
    first = torch.zeros_like(i) if unbounded(lower) else (i + lower).clamp(min=0)
    end = torch.full_like(i, Lk) if unbounded(upper) else (i + upper + 1).clamp(max=Lk)
    return float((end - first).clamp(min=0).sum()) / (Lq * Lk)
