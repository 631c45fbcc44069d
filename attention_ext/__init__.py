"""Fused attention for PyTorch: every mask, bias and head layout, forward and backward, in linear memory."""

from . import masks
from ._warnings import UnfusedWarning
from .functional import attention

__all__ = ["UnfusedWarning", "attention", "masks"]
__version__ = "0.1.0"
