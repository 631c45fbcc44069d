"""Layers on top of the fused operators."""

from .bigbird import BigBirdAttention
from .longformer import LongformerAttention
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
    "BigBirdAttention",
    "BlockSparseAttention",
    "DilatedAttention",
    "LongformerAttention",
    "MultiheadAttention",
    "NeighborhoodAttention",
    "ReplacementReport",
    "SlidingWindowAttention",
    "SparseAttention",
    "StridedAttention",
    "replace_attention",
]
