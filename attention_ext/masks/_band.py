"""Masks that are one diagonal band: they store nothing."""

from __future__ import annotations

from operator import index

import torch
from torch import Tensor

from ._base import Mask
from ._lowering import BAND, UNBOUNDED, Program
from ._rule import Rule


class _Band(Mask):
    """A rule about the distance between key and query."""

    _plain_fields = ("alignment",)
    _plain = True
    alignment: str

    def _shift(self, Lq: int, Lk: int) -> int:
        """i' - i"""
        return Lk - Lq if self._at_end() else 0

    def _at_end(self) -> bool:
        return self.alignment == "bottom_right"

    def __repr__(self) -> str:
        shown = [f"{name}={getattr(self, name)!r}" for name in self._plain_fields if name != "alignment"]
        if self.alignment != "bottom_right":
            shown.append(f"alignment={self.alignment!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _emit(self, program: Program) -> None:
        rule = self._rule()
        program.add(BAND, rule.lower, rule.upper, rule.dilation, rule.phase, rule.at_end)


class Causal(_Band):
    """Keys up to the query's own position: j <= i'.

    alignment: "bottom_right" (the last query sees all keys) or "top_left" (the first sees one key).
    """

    def __init__(self, alignment: str = "bottom_right") -> None:
        self._set(alignment=check_alignment(alignment))

    def _rule(self) -> Rule:
        return Rule(-UNBOUNDED, 0, 1, 0, self._at_end())

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
        self._set(left=left, right=right, alignment=check_alignment(alignment))

    def _rule(self) -> Rule:
        return Rule(*_bounds(self.left, self.right, 1), 1, 0, self._at_end())

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        position = i + self._shift(Lq, Lk)
        allowed = torch.ones_like(j - position, dtype=torch.bool)
        if self.left is not None:
            allowed = allowed & (position - self.left <= j)
        if self.right is not None:
            allowed = allowed & (j <= position + self.right)
        return allowed[None, None]


class Strided(_Band):
    """Every stride-th key, counted from the query's position: (i' - j) % stride == 0.

    One of the two patterns of the Sparse Transformer (Child et al. 2019, arXiv:1904.10509). stride: a
    positive integer. alignment: as in Causal. Raises TypeError or ValueError for anything else.
    """

    _plain_fields = ("stride", "alignment")
    stride: int

    def __init__(self, stride: int, alignment: str = "bottom_right") -> None:
        self._set(stride=check_positive("stride", stride), alignment=check_alignment(alignment))

    def _rule(self) -> Rule:
        return Rule(-UNBOUNDED, UNBOUNDED, self.stride, 0, self._at_end())

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        return ((i + self._shift(Lq, Lk) - j) % self.stride == 0)[None, None]


class Dilated(_Band):
    """A window over every dilation-th key: i' - left * dilation <= j <= i' + right * dilation, and
    (i' - j) % dilation == 0.

    As in Longformer (Beltagy et al. 2020, arXiv:2004.05150). left, right: non-negative integers, None =
    unbounded; dilation: a positive integer. alignment: as in Causal. Raises TypeError or ValueError for
    anything else.
    """

    _plain_fields = ("left", "right", "dilation", "alignment")
    left: int | None
    right: int | None
    dilation: int

    def __init__(
        self, left: int | None, right: int | None, dilation: int, alignment: str = "bottom_right"
    ) -> None:
        self._set(
            left=_check_reach("left", left),
            right=_check_reach("right", right),
            dilation=check_positive("dilation", dilation),
            alignment=check_alignment(alignment),
        )

    def _rule(self) -> Rule:
        return Rule(*_bounds(self.left, self.right, self.dilation), self.dilation, 0, self._at_end())

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        distance = j - i - self._shift(Lq, Lk)
        allowed = distance % self.dilation == 0
        if self.left is not None:
            allowed = allowed & (distance >= -self.left * self.dilation)
        if self.right is not None:
            allowed = allowed & (distance <= self.right * self.dilation)
        return allowed[None, None]


def _bounds(left: int | None, right: int | None, step: int) -> tuple[int, int]:
    return -UNBOUNDED if left is None else -left * step, UNBOUNDED if right is None else right * step


def check_alignment(alignment: str) -> str:
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


def check_positive(name: str, number: int) -> int:
    """A positive integer that can be a stride, a size or a window."""
    expected = f"{name}: expected a positive integer"
    if isinstance(number, (bool, Tensor)):
        raise TypeError(f"{expected}, got {type(number).__name__}")
    try:
        number = index(number)
    except TypeError:
        raise TypeError(f"{expected}, got {type(number).__name__}") from None
    if not 0 < number < 2**31:
        raise ValueError(f"{expected} below 2**31, got {number}")
    return number
