"""Layers on top of the fused operators."""

from .linear_attention import LinearAttention
from .linformer import LinformerAttention
from .multihead_attention import MultiheadAttention
from .nystrom import NystromAttention
from .random_features import PerformerAttention, RandomFeatureAttention
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
    "LinformerAttention",
    "MultiheadAttention",
    "NeighborhoodAttention",
    "NystromAttention",
    "PerformerAttention",
    "RandomFeatureAttention",
    "ReplacementReport",
    "SlidingWindowAttention",
    "SparseAttention",
    "StridedAttention",
    "replace_attention",
]
