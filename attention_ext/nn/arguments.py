"""Checks that the recurrent layers share."""

from __future__ import annotations

import torch
from torch import Tensor


def refuse_weights(layer: torch.nn.Module, causal: bool, need_weights, attn_mask, is_causal) -> None:
    """Raises for the arguments of ``nn.MultiheadAttention.forward`` that need weights of attention."""
    name = type(layer).__name__
    if need_weights:
        raise ValueError(f"need_weights: expected False, {name} computes no weights; got True")
    if is_causal and not causal:
        raise ValueError(f"is_causal: expected False with a {name} that isn't causal, got True")
    if attn_mask is not None and not is_causal:
        raise ValueError(
            f"attn_mask: expected None, {name} computes no scores to mask (with is_causal=True a causal layer"
            " takes a mask that is causal)"
        )


def check_token(layer: torch.nn.Module, x: Tensor) -> None:
    """x is one token (N, embed_dim) for a step of the layer, and nobody waits for a derivative."""
    if x.dim() != 2 or x.shape[1] != layer.embed_dim:
        raise ValueError(f"x: expected shape (N, {layer.embed_dim}) of one token, got {tuple(x.shape)}")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *layer.parameters())):
        raise RuntimeError("step: has no derivatives; call it inside torch.no_grad()")
