"""Masks: which query may attend to which key.

A mask is an immutable value. `mask.dense(Lq, Lk)` shows it as a bool tensor, `a & b` allows what both allow,
and `mask.lower(...)` turns it into the six arguments that the operators take, `LoweredMask`, without building
an Lq x Lk tensor that the mask does not hold already. Tensors inside compare by identity and version.

Positions: query i stands at i' = i + Lk - Lq (bottom right: the last query at the last key), or at i' = i
with alignment="top_left"; key j stands at j. KeyLengths, KeyPadding and Dense index plainly, by (i, j).
"""

import torch

from ._band import Causal, SlidingWindow
from ._base import NO_MASK, Intersection, LoweredMask, Mask
from ._tensor import Dense, KeyLengths, KeyPadding

__all__ = [
    "NO_MASK",
    "Causal",
    "Dense",
    "Intersection",
    "KeyLengths",
    "KeyPadding",
    "LoweredMask",
    "Mask",
    "SlidingWindow",
]

_classes = (Causal, Dense, Intersection, KeyLengths, KeyPadding, SlidingWindow)
for _class in _classes:
    _class.__module__ = __name__  # what pickles and saved programs refer to
torch.serialization.add_safe_globals(list(_classes))
