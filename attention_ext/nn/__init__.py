"""Layers on top of the fused operators."""

from .bigbird import BigBirdAttention
from .delta_net import DeltaNet, DeltaNetState, GatedDeltaNet
from .gated_linear_attention import GatedLinearAttention
from .linear_attention import LinearAttention
from .linformer import LinformerAttention
from .longformer import LongformerAttention
from .moba_attention import MoBAAttention
from .multihead_attention import MultiheadAttention
from .native_sparse_attention import NativeSparseAttention
from .nystrom import NystromAttention
from .random_features import PerformerAttention, RandomFeatureAttention
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
    "BigBirdAttention",
    "BlockSparseAttention",
    "DeltaNet",
    "DeltaNetState",
    "DilatedAttention",
    "GatedDeltaNet",
    "GatedLinearAttention",
    "LinearAttention",
    "LinformerAttention",
    "LongformerAttention",
    "MoBAAttention",
    "MultiheadAttention",
    "NativeSparseAttention",
    "NeighborhoodAttention",
    "NystromAttention",
    "PerformerAttention",
    "RandomFeatureAttention",
    "ReplacementReport",
    "Retention",
    "RetentionState",
    "ShortConvolution",
    "SlidingWindowAttention",
    "SparseAttention",
    "StridedAttention",
    "replace_attention",
]
