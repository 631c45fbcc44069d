"""Attention as functions."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, varlen
from ._ops.attention import attention_op
from .masks import NO_MASK, Mask
from .merge import merge_attention_states
from .sdpa import scaled_dot_product_attention

__all__ = ["attention", "merge_attention_states", "scaled_dot_product_attention"]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Scaled dot-product attention, fused: memory is linear in the sequence lengths, forward and backward.

    Query i, key j of row b and head h, in this order::

        s = scale * <query_i, key_j>
        s = softcap * tanh(s / softcap)                       with softcap
        s = s + bias[b, h, i, j]                              with bias
        s = s - alibi_slopes[h] * |i + Lk - Lq - j|           with alibi_slopes
        w_j = exp(s_j) / (exp(sinks[h]) + sum of exp(s))      over the keys that the mask allows
        w_j = keep_j * w_j / (1 - dropout_p)                  with dropout
        out_i = sum of w_j * value_j

    Args:
        query: (B, Hq, Lq, D), float32, float64, bfloat16 or float16, any strides. The three may come without
            B, (H, L, D), or without B and H, (L, D); the results are then without them too.
            All three may be nested tensors of layout torch.jagged, L different in each row: the mask then
            acts inside each row, bias is None, and the results are nested.
        key: (B, Hkv, Lk, D). Hkv divides Hq; query head h reads key head h // (Hq / Hkv), as in grouped-query
            attention (Ainslie et al. 2023, arXiv:2305.13245).
        value: (B, Hkv, Lk, Dv).
        mask: one of `attention_ext.masks`, or several joined by &, | and ~. A query that sees no key has
            output 0 and gradients 0. A key or value, NaN included, never reaches a query that doesn't see it.
        bias: broadcastable to (B, Hq, Lq, Lk), in query's dtype or float32; -inf counts as masked. Its
            gradient has its own shape, and nothing larger is made on the way.
        scale: None is D**-0.5.
        softcap: None or 0 is off (Gemma 2, arXiv:2408.00118).
        sinks: (Hq,), raw logits in any of the four dtypes, neither scaled nor capped (Xiao et al. 2023,
            arXiv:2309.17453; as in gpt-oss, arXiv:2508.10925).
        alibi_slopes: (Hq,) or (B, Hq), any of the four dtypes (Press et al. 2022, arXiv:2108.12409).
        dropout_p: probability that a weight is dropped; applied whenever it is not 0.
        dropout_seed: an int, or an int64 tensor of shape () on query's device: what is dropped is a function
            of it and of the weight's row, head, query and key, the same on every device. None draws one from
            torch's generator of the device.
        return_lse: also return the logarithm of the softmax's denominator, sinks included.

    Returns:
        out (B, Hq, Lq, Dv) in query's dtype, or (out, lse) with lse (B, Hq, Lq) in float32 (float64 for
        float64), -inf where a query sees nothing. Both are differentiable, in query, key, value, bias, sinks
        and alibi_slopes.

    First-order reverse mode and torch.func.vmap are fused. Forward mode and higher orders go through a
    formula whose memory is quadratic, with one `attention_ext.UnfusedWarning`. Under autocast query, key and
    value are cast, and bias where it has query's dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: sizes, devices or numbers that don't fit.

    Sources: Milakov and Gimelshein 2018 (arXiv:1805.02867), Dao et al. 2022 (arXiv:2205.14135).
    """
    if isinstance(query, Tensor) and query.is_nested and query.layout is torch.jagged:
        return varlen.attention_jagged(
            query,
            key,
            value,
            mask=mask,
            bias=bias,
            scale=scale,
            softcap=softcap,
            sinks=sinks,
            alibi_slopes=alibi_slopes,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
            return_lse=return_lse,
        )
    _checks.check_tensors(query, key, value)
    device = query.device
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        query, key, value, bias = _autocast(query, key, value, bias)
    (B, Hq, Lq, Lk), bias, scale = checked_scores(
        query, key, value, mask, bias, scale, softcap, sinks, alibi_slopes
    )
    if dropout_seed is not None:
        _checks.check_dropout_seed(dropout_seed, query)
    _checks.check_dropout_p(dropout_p)
    lowered = NO_MASK if mask is None else mask.lower(B, Hq, Lq, Lk, device)
    dropout_seed = _seed_tensor(dropout_seed, device) if dropout_p > 0 else None

    rank = query.dim()
    if rank < 4:
        leading = (None,) * (4 - rank)
        query, key, value = query[leading], key[leading], value[leading]
    out, lse = attention_op(
        query, key, value, lowered, bias, sinks, alibi_slopes, scale, softcap or 0.0, dropout_p, dropout_seed
    )
    if rank < 4:
        first = (0,) * (4 - rank)
        out, lse = out[first], lse[first]
    return (out, lse) if return_lse else out


def checked_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None,
    bias: Tensor | None,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
) -> tuple[tuple[int, int, int, int], Tensor | None, float | None]:
    """Checks what makes the scores. Returns (B, Hq, Lq, Lk), the bias with 4 dimensions, and the scale."""
    B, Hq, Lq, Lk = _checks.check_qkv(query, key, value)
    if mask is not None:
        _checks.check_mask(mask, Mask)
    if bias is not None:
        _checks.check_bias(bias, query, B, Hq, Lq, Lk)
        bias = bias[(None,) * (4 - bias.dim())]
    if scale is not None:
        _checks.check_scale(scale)
        scale = float(scale)
    if softcap is not None:
        _checks.check_softcap(softcap)
    if sinks is not None:
        _checks.check_sinks(sinks, query, Hq)
    if alibi_slopes is not None:
        _checks.check_alibi_slopes(alibi_slopes, query, B, Hq)
    return (B, Hq, Lq, Lk), bias, scale


def _autocast(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> list[Tensor | None]:
    """Casts what torch's autocast would: floating point but for float64. A bias follows query."""
    dtype = torch.get_autocast_dtype(query.device.type)

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t

    follows = isinstance(bias, Tensor) and bias.dtype == query.dtype
    return [cast(query), cast(key), cast(value), cast(bias) if follows else bias]


def _seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    if seed is None:
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)
    return seed if isinstance(seed, Tensor) else torch.full((), seed, dtype=torch.int64, device=device)
