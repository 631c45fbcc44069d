"""Neighbourhoods in grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._band import check_positive
from ._base import Mask
from ._lowering import NEIGHBORHOOD, Program


class Neighborhood(Mask):
    """The neighbours in a grid of one to three dimensions, its positions flattened in row-major order.

    In a dimension a query sees `window` keys, every `dilation`-th: from window // 2 to its left on, moved
    inwards where that would reach over an edge of the grid. Where `causal`, it sees itself and the
    window - 1 keys before it, as far as they exist. In several dimensions it sees what it sees in each. The
    rule is that of NATTEN (Hassani et al. 2023, arXiv:2204.07143; dilated: arXiv:2209.15001; causal:
    arXiv:2403.04690), with stride 1.

    shape: the grid's sizes; Lq and Lk are their product. window, dilation: a positive integer, or one per
    dimension, window * dilation no larger than the size. causal: a bool, or one per dimension. Raises
    TypeError or ValueError for anything else.
    """

    _plain_fields = ("shape", "window", "dilation", "causal")
    shape: tuple[int, ...]
    window: tuple[int, ...]
    dilation: tuple[int, ...]
    causal: tuple[bool, ...]

    def __init__(
        self,
        shape: int | Sequence[int],
        window: int | Sequence[int],
        dilation: int | Sequence[int] = 1,
        causal: bool | Sequence[bool] = False,
    ) -> None:
        shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        if not 1 <= len(shape) <= 3:
            raise ValueError(f"shape: expected 1 to 3 dimensions, got {shape}")
        n = len(shape)
        shape = tuple(check_positive("shape", size) for size in shape)
        window = tuple(check_positive("window", size) for size in _each("window", window, n))
        dilation = tuple(check_positive("dilation", step) for step in _each("dilation", dilation, n))
        causal = _each("causal", causal, n)
        if not all(isinstance(flag, bool) for flag in causal):
            raise TypeError(f"causal: expected a bool or one per dimension, got {causal}")
        if any(w * d > size for w, d, size in zip(window, dilation, shape, strict=True)):
            raise ValueError(
                f"window: expected window * dilation of at most the grid's size {shape}, "
                f"got window {window} and dilation {dilation}"
            )
        self._set(shape=shape, window=window, dilation=dilation, causal=causal)

    def __repr__(self) -> str:
        shown = [str(self.shape), str(self.window)]
        if any(step != 1 for step in self.dilation):
            shown.append(f"dilation={self.dilation}")
        if any(self.causal):
            shown.append(f"causal={self.causal}")
        return f"Neighborhood({', '.join(shown)})"

    def _own_sizes(self) -> tuple[int, int] | None:
        return math.prod(self.shape), math.prod(self.shape)

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        length = math.prod(self.shape)
        if (Lq, Lk) != (length, length):
            raise ValueError(f"mask: expected {length} queries and keys for {self!r}, got {Lq} and {Lk}")
        allowed = torch.ones_like(i + j, dtype=torch.bool)
        stride = length
        for size, window, dilation, causal in zip(
            self.shape, self.window, self.dilation, self.causal, strict=True
        ):
            stride //= size
            x, y = i // stride % size, j // stride % size
            group, step = x % dilation, x // dilation
            if causal:
                first, last = step - window + 1, step
            else:
                in_group = (size - group + dilation - 1) // dilation
                first = torch.minimum(step - window // 2, in_group - window).clamp(min=0)
                last = first + window - 1
            step = y // dilation
            allowed = allowed & (y % dilation == group) & (first <= step) & (step <= last)
        return allowed[None, None]

    def _emit(self, program: Program) -> None:
        dimensions = zip(self.shape, self.window, self.dilation, self.causal, strict=True)
        program.add(NEIGHBORHOOD, len(self.shape), *(n for dimension in dimensions for n in dimension))


def _each(name: str, value: int | bool | Sequence, n: int) -> tuple:
    if not isinstance(value, Sequence):
        return (value,) * n
    if len(value) != n:
        raise ValueError(f"{name}: expected one value or {n}, one per dimension, got {tuple(value)}")
    return tuple(value)
