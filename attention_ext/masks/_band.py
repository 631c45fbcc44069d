"""Masks that are one diagonal band: they store nothing."""

from __future__ import annotations

from operator import index

import torch
from torch import Tensor

from ._base import UNBOUNDED, LoweredMask, Mask


class _Band(Mask):
    """lower <= j - i <= upper, None = unbounded."""

    _plain_fields = ("alignment",)
    alignment: str

    def _bounds(self, Lq: int, Lk: int) -> tuple[int | None, int | None]:
        raise NotImplementedError

    def _shift(self, Lq: int, Lk: int) -> int:
        """i' - i"""
        return Lk - Lq if self.alignment == "bottom_right" else 0

    def __repr__(self) -> str:
        shown = [f"{name}={getattr(self, name)!r}" for name in self._plain_fields if name != "alignment"]
        if self.alignment != "bottom_right":
            shown.append(f"alignment={self.alignment!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _lower(self, B: int, Hq: int, Lq: int, Lk: int) -> LoweredMask:
        lower, upper = self._bounds(Lq, Lk)
        lower = -UNBOUNDED if lower is None else lower
        upper = UNBOUNDED if upper is None else upper
        return LoweredMask([lower, upper, 1, 0, 0, 0], None, None, None, None, [])

    def density(self, Lq: int, Lk: int) -> float:
        lower, upper = self._bounds(Lq, Lk)
        i = torch.arange(Lq)
        first = torch.zeros_like(i) if lower is None else (i + lower).clamp(min=0)
        end = torch.full_like(i, Lk) if upper is None else (i + upper + 1).clamp(max=Lk)
        return float((end - first).clamp(min=0).sum()) / (Lq * Lk) if Lq and Lk else 0.0


class Causal(_Band):
    """Keys up to the query's own position: j <= i'.

    alignment: "bottom_right" (the last query sees all keys) or "top_left" (the first sees one key).
    """

    def __init__(self, alignment: str = "bottom_right") -> None:
        self._set(alignment=_check_alignment(alignment))

    def _bounds(self, Lq: int, Lk: int) -> tuple[int | None, int | None]:
        return None, self._shift(Lq, Lk)

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        return (j <= i + self._shift(Lq, Lk))[None, None]


class SlidingWindow(_Band):
    """Keys near the query's position: i' - left <= j <= i' + right, both ends included.

    left, right: non-negative integers, None = unbounded. A causal window of w keys: SlidingWindow(w - 1, 0).
    alignment: as in Causal. Raises TypeError or ValueError for anything else, negative numbers too.
    """

    _plain_fields = ("left", "right", "alignment")
    left: int | None
    right: int | None

    def __init__(self, left: int | None, right: int | None, alignment: str = "bottom_right") -> None:
        left, right = _check_reach("left", left), _check_reach("right", right)
        self._set(left=left, right=right, alignment=_check_alignment(alignment))

    def _bounds(self, Lq: int, Lk: int) -> tuple[int | None, int | None]:
        shift = self._shift(Lq, Lk)
        lower = None if self.left is None else shift - self.left
        upper = None if self.right is None else shift + self.right
        return lower, upper

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        position = i + self._shift(Lq, Lk)
        allowed = torch.ones_like(j - position, dtype=torch.bool)
        if self.left is not None:
            allowed = allowed & (position - self.left <= j)
        if self.right is not None:
            allowed = allowed & (j <= position + self.right)
        return allowed[None, None]


def _check_alignment(alignment: str) -> str:
    if alignment not in ("bottom_right", "top_left"):
        raise ValueError(f'alignment: expected "bottom_right" or "top_left", got {alignment!r}')
    return alignment


def _check_reach(name: str, reach: int | None) -> int | None:
    if reach is None:
        return None
    expected = f"{name}: expected a non-negative integer or None (unbounded)"
    if isinstance(reach, (bool, Tensor)):
        raise TypeError(f"{expected}, got {type(reach).__name__}")
    if not isinstance(reach, (int, torch.SymInt)):
        try:
            reach = index(reach)
        except TypeError:
            raise TypeError(f"{expected}, got {type(reach).__name__}") from None
    if reach < 0:
        raise ValueError(f"{expected}, got {reach}")
    # No sequence is longer, and sums of bounds stay within 64 bits.
    return None if isinstance(reach, int) and reach >= UNBOUNDED // 2 else reach
