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


def check_self_attention(
    layer: torch.nn.Module,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    key_padding_mask: Tensor | None,
) -> bool:
    """Raises for what a layer of self-attention can't take; returns whether the input is batched."""
    for name, x in (("key", key), ("value", value)):
        if x is not None and x is not query:
            raise ValueError(
                f"{name}: expected query itself, or None, for self-attention; got another tensor"
            )
    shape, embed_dim, weight = tuple(query.shape), layer.embed_dim, layer.out_proj.weight
    if query.dim() not in (2, 3) or shape[-1] != embed_dim:
        raise ValueError(f"query: expected (L, {embed_dim}), or 3 dimensions if batched, got shape {shape}")
    if query.dtype != weight.dtype and not torch.is_autocast_enabled(query.device.type):
        raise TypeError(f"query: expected {weight.dtype}, the weights' dtype, got {query.dtype}")
    batched = query.dim() == 3
    if key_padding_mask is not None:
        expected = shape[:-1] if layer.batch_first or not batched else shape[1::-1]
        if tuple(key_padding_mask.shape) != expected:
            raise ValueError(
                f"key_padding_mask: expected shape {expected}, got {tuple(key_padding_mask.shape)}"
            )
        if key_padding_mask.dtype != torch.bool and not key_padding_mask.is_floating_point():
            raise TypeError(
                f"key_padding_mask: expected bool or floating point, got {key_padding_mask.dtype}"
            )
    return batched
