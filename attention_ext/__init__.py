"""Fused attention for PyTorch: every mask, bias and head layout, forward and backward, in linear memory."""

import torch  # noqa: F401  its libraries, which ours need, are found by being loaded

from . import features, functional, integrations, masks, nn, reference, visualize
from ._build_info import build_info
from ._C import build as _build
from ._warnings import UnfusedWarning
from .delta import delta_rule, delta_rule_step
from .functional import attention, merge_attention_states, scaled_dot_product_attention
from .linear import linear_attention, linear_attention_step
from .maps import AttentionMap, attention_map
from .nn import MultiheadAttention, replace_attention
from .selection import select_blocks
from .varlen import attention_varlen

__all__ = [
    "AttentionMap",
    "MultiheadAttention",
    "UnfusedWarning",
    "attention",
    "attention_map",
    "attention_varlen",
    "build_info",
    "delta_rule",
    "delta_rule_step",
    "features",
    "functional",
    "integrations",
    "linear_attention",
    "linear_attention_step",
    "masks",
    "merge_attention_states",
    "nn",
    "reference",
    "replace_attention",
    "scaled_dot_product_attention",
    "select_blocks",
    "visualize",
]
__version__ = _build()["version"]
