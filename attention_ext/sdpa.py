"""torch.nn.functional.scaled_dot_product_attention, on our operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _checks, functional
from .masks import Causal, Dense

_CAUSAL = Causal(alignment="top_left")


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention: its signature and its results.

    Differences: NaN and infinity in a masked key or value stay out of the output, dropout draws its own
    numbers, errors are ValueError and TypeError, and nested tensors are not taken.

    Args:
        query: (..., Hq, L, E), at least 2-D, float32, float64, bfloat16 or float16.
        key: (..., H, S, E).
        value: (..., H, S, Ev). All dimensions but the last two broadcast.
        attn_mask: broadcastable to (..., Hq, L, S). Bool: True = attend. Float32 or query's dtype: added to
            the scores, with a gradient.
        dropout_p: applied whenever it is not 0, in evaluation too.
        is_causal: query i sees the keys up to i, counted from the start (top left); not with attn_mask.
        scale: None is E**-0.5.
        enable_gqa: key and value may have fewer heads, numbers that divide Hq.

    Returns:
        (..., Hq, L, Ev) in query's dtype. A query that may see no key gets 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: sizes, devices or numbers that don't fit; is_causal with attn_mask.
    """
    _checks.check_tensors(query, key, value)
    for name, t in (("query", query), ("key", key), ("value", value)):
        if t.dim() < (3 if enable_gqa else 2):
            expected = "(..., H, L, E) with enable_gqa" if enable_gqa else "(..., L, E)"
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(t.shape)}")
    if attn_mask is not None:
        if is_causal:
            raise ValueError("is_causal: expected False where attn_mask is given, got True")
        _checks.check_tensor("attn_mask", attn_mask)
        if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
            expected = f"bool, float32 or the dtype of query, {query.dtype}"
            raise TypeError(f"attn_mask: expected dtype {expected}, got {attn_mask.dtype}")

    if enable_gqa and key.shape[-3] != value.shape[-3]:
        key, value = _repeated("key", key, query), _repeated("value", value, query)
    leading, key_heads = _leading(query, key, value, enable_gqa)
    batch, heads = leading[:-1], leading[-1:]
    mask, bias = _CAUSAL if is_causal else None, None
    if attn_mask is not None:
        attn_mask = _folded_mask(attn_mask, (*leading, query.shape[-2], key.shape[-2]))
    if heads == (0,):  # as an empty batch of one head: the operator has at least one
        query, key, value = (t.expand(*leading, *t.shape[-2:]).unsqueeze(-3) for t in (query, key, value))
        batch, heads, key_heads, attn_mask = leading, (1,), (1,), None
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            mask = Dense(attn_mask)
        else:
            bias = attn_mask
    out = functional.attention(
        _folded(query, batch, heads),
        _folded(key, batch, key_heads),
        _folded(value, batch, key_heads),
        mask=mask,
        bias=bias,
        scale=scale,
        dropout_p=dropout_p,
    )
    return out if len(leading) == 2 and len(batch) == 1 else out.reshape(*leading, *out.shape[-2:])


def _leading(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the leading dimensions broadcast to, and the number of heads to read key and value with."""
    shapes = [tuple(t.shape[:-2]) for t in (query, key, value)]
    own = [shape[-1] if shape else 1 for shape in shapes]
    if enable_gqa:
        shapes[1:] = [(*shape[:-1], own[0]) for shape in shapes[1:]]
    try:
        leading = shapes[0]
        if not shapes[0] == shapes[1] == shapes[2]:
            leading = tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        got = ", ".join(str(tuple(t.shape)) for t in (query, key, value))
        raise ValueError(
            f"key, value: expected leading dimensions that broadcast with those of query, got shapes {got}"
        ) from None
    grouped = enable_gqa or own[1] == own[2] == 1  # one head for all of query's is a group, too
    return leading, (own[1],) * len(leading[-1:]) if grouped else leading[-1:]


def _repeated(name: str, t: Tensor, query: Tensor) -> Tensor:
    """Key or value with one head for each head of query, where the two have different numbers of heads."""
    heads, own = query.shape[-3], t.shape[-3]
    if own == 0 or heads % own != 0:
        raise ValueError(f"{name}: expected a number of heads that divides query's {heads}, got {own}")
    return t.repeat_interleave(heads // own, dim=-3)


def _folded(t: Tensor, batch: tuple[int, ...], heads: tuple[int, ...]) -> Tensor:
    """(B, H, L, D), of a tensor that broadcasts to (*batch, *heads, L, D)."""
    if t.shape[:-2] != (*batch, *heads):
        t = t.expand(*batch, *heads, *t.shape[-2:])
    if t.dim() < 4:
        return t[(None,) * (4 - t.dim())]
    return t if t.dim() == 4 else t.reshape(math.prod(batch), *t.shape[-3:])


def _folded_mask(mask: Tensor, full: tuple[int, ...]) -> Tensor:
    """At most 4-D, of a mask that broadcasts to `full`, (*batch, H, L, S). Kept broadcast."""
    own = (1,) * (len(full) - mask.dim()) + tuple(mask.shape)
    if len(own) != len(full) or any(a != 1 and a != b for a, b in zip(own, full, strict=True)):
        raise ValueError(f"attn_mask: expected a shape that broadcasts to {full}, got {tuple(mask.shape)}")
    if len(full) <= 4:
        return mask
    batch = own[:-3]
    if any(size != 1 for size in batch):
        batch = full[:-3]
    return mask.expand(*batch, *own[-3:]).reshape(math.prod(batch), *own[-3:])
