"""Fused attention for PyTorch: every mask, bias and head layout, forward and backward, in linear memory."""

import torch  # noqa: F401  its libraries, which ours need, are found by being loaded

from . import functional, integrations, masks, nn, reference
from ._build_info import build_info
from ._C import build as _build
from ._warnings import UnfusedWarning
from .functional import attention, merge_attention_states, scaled_dot_product_attention
from .nn import MultiheadAttention, replace_attention
from .varlen import attention_varlen

__all__ = [
    "MultiheadAttention",
    "UnfusedWarning",
    "attention",
    "attention_varlen",
    "build_info",
    "functional",
    "integrations",
    "masks",
    "merge_attention_states",
    "nn",
    "reference",
    "replace_attention",
    "scaled_dot_product_attention",
]
__version__ = _build()["version"]
