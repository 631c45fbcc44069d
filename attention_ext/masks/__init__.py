"""Masks: which query may attend to which key.

A mask is an immutable value. `mask.dense(Lq, Lk)` shows it as a bool tensor, `a & b` allows what both allow,
`a | b` what any of them allows, `~a` the rest, and `mask.lower(...)` turns it into the six arguments that the
operators take, `LoweredMask`, without building an Lq x Lk tensor that the mask does not hold already. Tensors
inside compare by identity and version.

Positions: query i stands at i' = i + Lk - Lq (bottom right: the last query at the last key), or at i' = i
with alignment="top_left"; key j stands at j. KeyLengths, KeyPadding, Blocks, Selected, Dense and
from_function index plainly, by (i, j).
"""

import torch

from ._band import Causal, Dilated, SlidingWindow, Strided
from ._base import Complement, Intersection, Mask, Union
from ._blocks import Blocks, Tiles, from_function
from ._grid import Neighborhood
from ._lowering import NO_MASK, LoweredMask
from ._packed import Packed
from ._positions import Documents, Global
from ._selected import Compressed, Selected
from ._tensor import Dense, KeyLengths, KeyPadding

_classes = (
    Blocks,
    Causal,
    Complement,
    Compressed,
    Dense,
    Dilated,
    Documents,
    Global,
    Intersection,
    KeyLengths,
    KeyPadding,
    Neighborhood,
    Packed,
    Selected,
    SlidingWindow,
    Strided,
    Tiles,
    Union,
)
__all__ = [
    "NO_MASK",
    "Blocks",
    "Causal",
    "Complement",
    "Compressed",
    "Dense",
    "Dilated",
    "Documents",
    "Global",
    "Intersection",
    "KeyLengths",
    "KeyPadding",
    "LoweredMask",
    "Mask",
    "Neighborhood",
    "Packed",
    "Selected",
    "SlidingWindow",
    "Strided",
    "Tiles",
    "Union",
    "from_function",
]
for _class in _classes:
    _class.__module__ = __name__  # what pickles and saved programs refer to
torch.serialization.add_safe_globals(list(_classes))
