"""Mixture of block attention."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..masks import Mask
from ..masks._band import check_positive
from ..selection import select_blocks
from .sparse_attention import SparseAttention


class MoBAAttention(SparseAttention):
    """Attention to the blocks of keys that each query chooses: MoBA (Lu et al. 2025, arXiv:2502.13189).

    Every query of every head attends to its own block, up to itself, and to the `top_k - 1` earlier blocks
    whose mean key has the largest product with it. The gradient is exact for the blocks chosen; there is none
    of the choice. Parameters are those of ``nn.MultiheadAttention``, whose weights can be trained on.

    Keys that ``key_padding_mask`` hides (-inf in a float mask) are left out of the means, and a block of
    nothing else is not chosen. Other masks don't change the choice.

    Args:
        block_size, top_k, causal: as in :func:`attention_ext.select_blocks`.
    """

    def __init__(self, *args: Any, block_size: int, top_k: int, causal: bool = True, **kwargs: Any) -> None:
        pattern = {"block_size": block_size, "top_k": top_k, "causal": causal}
        super().__init__(*args, pattern=pattern, **kwargs)

    def _set_pattern(self, block_size: int, top_k: int, causal: bool = True) -> None:
        self.block_size = check_positive("block_size", block_size)
        self.top_k = check_positive("top_k", top_k)
        self.causal = causal

    def pattern(self, Lq: int, Lk: int) -> Mask:
        raise TypeError(
            "pattern: MoBAAttention has none for lengths alone; select_blocks gives that of query and key"
        )

    def _pattern_of(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Mask:
        keep = kept_keys(key_padding_mask)
        return select_blocks(q, k, self.block_size, self.top_k, causal=self.causal, key_keep=keep)

    def extra_repr(self) -> str:
        return f"block_size={self.block_size}, top_k={self.top_k}, causal={self.causal}"


def kept_keys(key_padding_mask: Tensor | None) -> Tensor | None:
    """bool (N, S), True = not hidden, of a bool mask (True = hidden) or a float one (-inf)."""
    if key_padding_mask is None:
        return None
    return key_padding_mask != (-math.inf if key_padding_mask.is_floating_point() else True)
