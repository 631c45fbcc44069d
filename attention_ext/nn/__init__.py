"""Layers on top of the fused operators."""

from .multihead_attention import MultiheadAttention
from .replace import ReplacementReport, replace_attention

__all__ = ["MultiheadAttention", "ReplacementReport", "replace_attention"]
