"""The mask of a case as a tensor, as a user of attention_ext writes it, and as FlexAttention's function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import attention_ext as ax

from .cases import CAUSAL, Band, Case, Holes, Pattern
from .patterns import BigBird, Documents, Grid, Longformer, Table

__all__ = ["block_map", "dense_mask", "flex_function", "mask_of"]


def mask_of(case: Case) -> ax.masks.Mask | None:
    """The mask as a user of attention_ext would write it."""
    s = case.shape
    match case.mask:
        case None:
            return None
        case Band(left, right) as band:
            return ax.masks.Causal() if band == CAUSAL else ax.masks.SlidingWindow(left, right)
        case Holes(keys_only=True) as holes:
            return ax.masks.KeyPadding(dense_mask(holes, s.Lq, s.Lk)[:1].expand(s.B, s.Lk))
        case Holes() as holes:
            return ax.masks.Dense(dense_mask(holes, s.Lq, s.Lk))
        case Documents(length):
            return ax.masks.Documents(torch.arange(s.Lk) // length)
        case Grid(size, window):
            return ax.masks.Neighborhood((size, size), window)
        case BigBird() as bigbird:
            return ax.masks.Blocks(block_map(bigbird, s.Lk), bigbird.block)
        case Longformer(reach, tokens):
            return ax.masks.SlidingWindow(reach, reach) | ax.masks.Global(tokens)
        case Table(mask):
            return ax.masks.from_function(flex_function(mask, s.Lk), None, None, s.Lq, s.Lk)


def dense_mask(mask: Pattern, Lq: int, Lk: int, device: torch.device | str = "cpu") -> Tensor:
    """bool (Lq, Lk), True = attend."""
    i, j = torch.arange(Lq, device=device)[:, None], torch.arange(Lk, device=device)
    zero = i.new_zeros(())
    keep = flex_function(mask, Lk, device)(zero, zero, i, j)
    return keep.expand(Lq, Lk)


def block_map(bigbird: BigBird, Lk: int) -> Tensor:
    """bool (blocks, blocks)"""
    rows = bigbird.blocks(Lk)
    keep = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for row, blocks in zip(keep, rows, strict=True):
        row[list(blocks)] = True
    return keep


def flex_function(
    mask: Pattern, Lk: int, device: torch.device | str = "cpu"
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """allowed(b, h, i, j), a `mask_mod` of positions on the device."""
    match mask:
        case Table(inner):
            return flex_function(inner, Lk, device)
        case Band(left, right):
            reach_left, reach_right = (2**40 if reach is None else reach for reach in (left, right))
            return lambda b, h, i, j: (j >= i - reach_left) & (j <= i + reach_right)
        case Holes(step, True):
            return lambda b, h, i, j: j % step != 0
        case Holes(step):
            return lambda b, h, i, j: (i + j) % step != 0
        case Documents(length):
            return lambda b, h, i, j: i // length == j // length
        case Grid(size, window):
            return lambda b, h, i, j: (
                _near(i // size, j // size, size, window) & _near(i % size, j % size, size, window)
            )
        case BigBird(block):
            keep = block_map(mask, Lk).to(device)
            return lambda b, h, i, j: keep[i // block, j // block]
        case Longformer(reach, tokens):
            return lambda b, h, i, j: ((i - j).abs() <= reach) | (i < tokens) | (j < tokens)
    raise TypeError(f"unknown mask {mask}")


def _near(x: Tensor, y: Tensor, size: int, window: int) -> Tensor:
    first = (x - window // 2).clamp(0, size - window)
    return (y >= first) & (y < first + window)
