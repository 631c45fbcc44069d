"""Tables that the tests of linear attention and the delta rule share."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from helpers import assert_matches
from torch import Tensor

import attention_ext as ax


class Shape(NamedTuple):
    B: int
    Hq: int
    Hk: int
    Hv: int
    L: int
    D: int
    Dv: int

    @property
    def Hs(self) -> int:
        return max(self.Hk, self.Hv)

    @property
    def H(self) -> int:
        return max(self.Hq, self.Hs)


# Chunks hold 2 to 48 tokens; sizes stand around multiples of 16, and most are not round.
SHAPES = {
    "tiny": Shape(1, 1, 1, 1, 1, 1, 1),
    "square": Shape(2, 2, 2, 2, 37, 16, 16),
    "grouped": Shape(1, 6, 2, 2, 50, 24, 8),
    "more_values": Shape(1, 2, 2, 4, 49, 7, 33),
    "more_keys": Shape(2, 2, 4, 1, 33, 5, 3),
    "wide": Shape(1, 1, 1, 1, 20, 130, 70),
    "parts": Shape(1, 1, 1, 1, 1030, 4, 4),
}
EMPTY_SHAPES = {
    "no_batch": Shape(0, 2, 1, 2, 5, 8, 4),
    "no_tokens": Shape(2, 2, 1, 1, 0, 8, 4),
    "no_values": Shape(1, 2, 1, 1, 5, 8, 0),
}
DECAYS = ("head", "token", "channel")
FEATURE_MAPS = ("identity", "elu", "relu", "softmax")


def make_qkv(
    s: Shape, dtype: torch.dtype = torch.float32, Lk: int | None = None, heads_last: bool = False
) -> list[Tensor]:
    """Random query, key, value; heads_last: in memory (B, L, H, D), as a projection leaves them."""
    Lk = s.L if Lk is None else Lk
    sizes = [(s.Hq, s.L, s.D), (s.Hk, Lk, s.D), (s.Hv, Lk, s.Dv)]
    if heads_last:
        return [torch.randn(s.B, L, H, D).to(dtype).transpose(1, 2) for H, L, D in sizes]
    return [torch.randn(s.B, H, L, D).to(dtype) for H, L, D in sizes]


def make_decay(
    s: Shape, kind: str | None, dtype: torch.dtype = torch.float32, strength: float = 1.0
) -> Tensor | None:
    """Log-decays, most of them weak: what they weigh lives for some tokens or for all."""
    if kind is None:
        return None
    sizes = {"head": (s.Hs,), "token": (s.B, s.Hs, s.L), "channel": (s.B, s.Hs, s.L, s.D)}[kind]
    return (-strength * torch.rand(sizes).pow(3)).to(dtype)


def make_state(
    s: Shape, normalize: bool, dtype: torch.dtype = torch.float32, sequences: int | None = None
) -> list[Tensor]:
    """[S, z] with a positive z, or [S]."""
    n = s.B if sequences is None else sequences
    S = torch.randn(n, s.Hs, s.D, s.Dv).to(dtype)
    return [S, 5 * torch.rand(n, s.Hs, s.D).to(dtype)] if normalize else [S]


def assert_linear_attention_matches(
    q, k, v, *, decay=None, state=None, normalize=True, floor=None, **options
):
    """Out, the last state and all gradients."""
    decays = [] if decay is None else [decay]
    options.update(normalize=normalize, return_state=True)

    def run(function):
        def flat(q, k, v, *others):
            others = list(others)
            g = others.pop(0) if decays else None
            initial = (tuple(others) if normalize else others[0]) if others else None
            out, last = function(q, k, v, decay=g, initial_state=initial, **options)
            return (out, *last) if normalize else (out, last)

        return partial(flat)  # not a function: its arguments have no names of their own

    floor = 4e-6 if q.dtype == torch.float32 and floor is None else floor
    ours, formula = run(ax.linear_attention), run(ax.reference.linear_attention)
    assert_matches(ours, q, k, v, *decays, *(state or []), against=formula, floor=floor)
