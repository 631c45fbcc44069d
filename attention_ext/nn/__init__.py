"""Layers on top of the fused operators."""

from .linear_attention import LinearAttention
from .multihead_attention import MultiheadAttention
from .replace import ReplacementReport, replace_attention
from .sparse_attention import (
    BlockSparseAttention,
    DilatedAttention,
    NeighborhoodAttention,
    SlidingWindowAttention,
    SparseAttention,
    StridedAttention,
)

__all__ = [
    "BlockSparseAttention",
    "DilatedAttention",
    "LinearAttention",
    "MultiheadAttention",
    "NeighborhoodAttention",
    "ReplacementReport",
    "SlidingWindowAttention",
    "SparseAttention",
    "StridedAttention",
    "replace_attention",
]
