"""The cases of linear attention and the delta rule."""

from __future__ import annotations

from ..cases import CAUSAL, Case
from .bounds import N4096, faster

__all__ = ["DELTA_RULE", "LINEAR_ATTENTION"]

CHUNKS = ("chunks_64", "chunks_128")
WY_CHUNKS = ("chunks_32", "chunks_64")

LINEAR_ATTENTION = [
    Case(
        "linear_attention-forward",
        N4096,
        tuple(faster(3, c) for c in CHUNKS),
        CHUNKS,
        mask=CAUSAL,
        headline=True,
    ),
    Case(
        "linear_attention-both",
        N4096,
        tuple(faster(2.7, c) for c in CHUNKS),
        CHUNKS,
        passes="both",
        mask=CAUSAL,
        headline=True,
    ),
]
DELTA_RULE = [
    Case("delta_rule-forward", N4096, (), WY_CHUNKS, mask=CAUSAL, headline=True),
    Case("delta_rule-both", N4096, (), WY_CHUNKS, passes="both", mask=CAUSAL, headline=True),
]
