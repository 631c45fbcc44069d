"""Padded tokens of recurrent layers: moved behind the others, as the fused operators want them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """The order that brings the tokens of each row that are no padding to its front, order kept.

    Attributes:
        hidden: (N, L) bool, the padding.
        lengths: (N,), how many tokens of each row are no padding.
        order: (N, L), the place each token comes from.
        inverse: (N, L), the place it goes back to.
    """

    hidden: Tensor
    lengths: Tensor
    order: Tensor
    inverse: Tensor

    def pack(self, x: Tensor, dim: int) -> Tensor:
        """x (N, ..., L, ...) with the padding last."""
        return x.gather(dim, _along(self.order, x, dim))

    def unpack(self, x: Tensor, dim: int) -> Tensor:
        """The inverse of `pack`."""
        return x.gather(dim, _along(self.inverse, x, dim))


def packing(key_padding_mask: Tensor | None) -> Packing | None:
    """From a mask (N, L), True or -inf where padded; None without one. Raises as `hidden_tokens`."""
    if key_padding_mask is None:
        return None
    hidden = hidden_tokens(key_padding_mask)
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    return Packing(hidden, (~hidden).sum(1), order, order.argsort(dim=1))


def hidden_tokens(key_padding_mask: Tensor) -> Tensor:
    """bool, True where padded.

    Raises ValueError for a float mask that requires a gradient, or has other values than 0 and -inf where
    they can be looked at.
    """
    if key_padding_mask.dtype == torch.bool:
        return key_padding_mask
    hidden = key_padding_mask == -math.inf
    if key_padding_mask.requires_grad or _any(key_padding_mask.masked_fill(hidden, 0.0)):
        raise ValueError(
            "key_padding_mask: expected bool, or 0 and -inf without a gradient, as there are no scores to"
            " add to; got other numbers, or a gradient"
        )
    return hidden


def _along(index: Tensor, x: Tensor, dim: int) -> Tensor:
    """(N, L) in the shape of x, L at dim."""
    between, behind = dim - 1, x.dim() - dim - 1
    return index[(slice(None), *[None] * between, slice(None), *[None] * behind)].expand_as(x)


def _any(x: Tensor) -> bool:
    """Whether x has something else than 0, as far as can be seen."""
    if torch.compiler.is_compiling() or x.device.type == "meta":
        return False
    try:
        return bool(x.any())
    except RuntimeError:  # under vmap or a tracer there is no value to look at
        return False
