"""Fused attention for PyTorch: every mask, bias and head layout, forward and backward, in linear memory."""

from ._warnings import UnfusedWarning

__all__ = ["UnfusedWarning"]
__version__ = "0.1.0"
