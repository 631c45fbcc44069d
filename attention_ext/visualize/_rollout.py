"""Attention over several layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rollout(weights: Sequence[Tensor], *, residual: float = 0.5) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928): how much of each input token is in each
    position after every layer, if attention weights and residual connections were all there is.

    With W the mean of a layer's heads, R = A_n ... A_1, where A = (1 - residual) * W + residual * I, its rows
    divided by their sums.

    Args:
        weights: of the layers in order, each (..., H, L, L), such as `Recording.weights()`.
        residual: the share of the residual connection, 0 to 1.

    Returns:
        (layers, ..., L, L): the rollout up to each layer, the whole one last. Rows add up to 1. A row of
        weights that is 0 keeps its own position.

    Raises:
        ValueError: no layers, shapes that are not square or differ, or a residual out of range.
    """
    if not 0 <= residual <= 1:
        raise ValueError(f"residual: expected 0 to 1, got {residual}")
    if not len(weights):
        raise ValueError("weights: expected those of one layer at least, got none")
    found: list[Tensor] = []
    for n, layer in enumerate(weights):
        L = layer.shape[-1]
        if layer.dim() < 3 or layer.shape[-2] != L or (found and found[0].shape[-1] != L):
            expected = f"(..., H, {found[0].shape[-1]}, {found[0].shape[-1]})" if found else "(..., H, L, L)"
            raise ValueError(f"weights: expected {expected} for layer {n}, got {tuple(layer.shape)}")
        before = found[-1] if found else torch.eye(L, dtype=layer.dtype, device=layer.device)
        found.append(mix(layer.mean(-3) @ before, before, residual))
    return torch.stack(found)


def mix(attended: Tensor, before: Tensor, residual: float) -> Tensor:
    """Shares (..., L, n) after a layer: what attention gathers and what the residual connection keeps, rows
    adding up to 1 again. A row that attends to nothing keeps its own."""
    empty = attended.sum(-1, keepdim=True) == 0
    mixed = torch.where(empty, before, (1 - residual) * attended + residual * before)
    return mixed / mixed.sum(-1, keepdim=True)
