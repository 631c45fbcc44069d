"""The cases of the layers, of width E = H x D."""

from __future__ import annotations

from ..cases import Case, plain
from .bounds import D64, faster

__all__ = ["LAYER"]

LAYER = [
    Case("layer-eval", D64, (faster(1.6, "torch"),), ("torch", "torch_slow_path"), headline=True),
    Case("layer-train", D64, (faster(1.2, "torch"),), ("torch",), passes="both", headline=True),
    Case("layer-eval-128", plain(8, 8, 128, 64), peers=("torch", "torch_slow_path")),
    Case("layer-train-128", plain(8, 8, 128, 64), peers=("torch",), passes="both"),
]
