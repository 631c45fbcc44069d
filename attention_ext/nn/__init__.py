"""Layers on top of the fused operators."""

from .delta_net import DeltaNet, DeltaNetState, GatedDeltaNet
from .gated_linear_attention import GatedLinearAttention
from .linear_attention import LinearAttention
from .multihead_attention import MultiheadAttention
from .replace import ReplacementReport, replace_attention
from .retention import Retention, RetentionState
from .short_convolution import ShortConvolution
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
    "DeltaNet",
    "DeltaNetState",
    "DilatedAttention",
    "GatedDeltaNet",
    "GatedLinearAttention",
    "LinearAttention",
    "MultiheadAttention",
    "NeighborhoodAttention",
    "ReplacementReport",
    "Retention",
    "RetentionState",
    "ShortConvolution",
    "SlidingWindowAttention",
    "SparseAttention",
    "StridedAttention",
    "replace_attention",
]
