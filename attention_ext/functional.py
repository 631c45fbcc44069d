"""Attention as functions."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._ops.attention import attention_op
from .masks import NO_MASK, Mask

__all__ = ["attention"]

_NO_OPTIONS = (*NO_MASK, None, None, None)  # no mask, bias, sinks, slopes


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

    The score of query i and key j goes through these steps, in this order::

        s = scale * <query_i, key_j>
        s = softcap * tanh(s / softcap)                 if softcap
        s = s + bias[b, h, i, j]                        if bias
        s = s - alibi_slopes[h] * |i + Lk - Lq - j|     if alibi_slopes
        weights = softmax of s over the keys that the mask allows, exp(sinks[h]) added to its denominator if sinks
        weights = weights * keep / (1 - dropout_p)      if dropout_p
        out_i = sum_j weights_j * value_j

    Args:
        query: (B, Hq, Lq, D), float32, float64, bfloat16 or float16, with any strides. All tensors may come without
            B, (H, L, D), or without B and H, (L, D); then so do the results.
        key: (B, Hkv, Lk, D). Hkv divides Hq, and query head h reads key head h // (Hq / Hkv): grouped-query attention
            (Ainslie et al. 2023, arXiv:2305.13245).
        value: (B, Hkv, Lk, Dv).
        mask: one of `attention_ext.masks`, or several joined by &. A query that may see no key gets output 0 and
            gradients 0, and what is masked, NaN included, reaches no query that doesn't see it.
        bias: broadcastable to (B, Hq, Lq, Lk), in query's dtype or float32; -inf counts as masked. Its gradient has
            its own shape, and no larger buffer is made for it.
        scale: None is D**-0.5.
        softcap: None or 0 is off (Gemma 2, arXiv:2408.00118).
        sinks: (Hq,), any of the four dtypes; raw logits, neither scaled nor capped (gpt-oss; arXiv:2309.17453).
        alibi_slopes: (Hq,) or (B, Hq), any of the four dtypes (Press et al. 2022, arXiv:2108.12409).
        dropout_p: the probability with which a weight is dropped; applied whenever it is not 0.
        dropout_seed: an int, or an int64 tensor of shape () on query's device. The draw is a function of seed, row,
            head, query and key, the same on every device. None draws a seed from torch's generator of that device.
        return_lse: return also the logarithm of the softmax's denominator, sinks included.

    Returns:
        out (B, Hq, Lq, Dv) in query's dtype; or (out, lse) with lse (B, Hq, Lq) in float32 (float64 for float64),
        -inf where a query sees nothing, and differentiable too.

    Differentiable in query, key, value, bias, sinks and alibi_slopes. First-order reverse mode and torch.func.vmap are
    fused; forward mode and higher orders go through a plain formula whose memory is quadratic, with one
    `attention_ext.UnfusedWarning`. Under autocast query, key and value, and a bias of query's dtype, are cast.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: sizes, devices or numbers that don't fit.

    Forward: Milakov and Gimelshein 2018 (arXiv:1805.02867), Dao et al. 2022 (arXiv:2205.14135).
    """
    _checks.check_tensors(query, key, value)
    device = query.device
    if torch.is_autocast_enabled(device.type):
        query, key, value, bias = _autocast(torch.get_autocast_dtype(device.type), query, key, value, bias)
    B, Hq, Lq, Lk = _checks.check_qkv(query, key, value)
    rank = query.dim()
    if rank < 4:
        leading = (None,) * (4 - rank)
        query, key, value = query[leading], key[leading], value[leading]

    if mask is None and bias is None and sinks is None and alibi_slopes is None:
        options = _NO_OPTIONS
    else:
        if mask is not None:
            _checks.check_mask(mask, Mask)
        if bias is not None:
            _checks.check_bias(bias, query, B, Hq, Lq, Lk)
            bias = bias[(None,) * (4 - bias.dim())]
        if sinks is not None:
            _checks.check_sinks(sinks, query, Hq)
        if alibi_slopes is not None:
            _checks.check_alibi_slopes(alibi_slopes, query, B, Hq)
        lowered = NO_MASK if mask is None else mask.lower(B, Hq, Lq, Lk, device)
        options = (*lowered, bias, sinks, alibi_slopes)

    if scale is not None:
        _checks.check_scale(scale)
        scale = float(scale)
    elif not torch.compiler.is_compiling():  # in a graph the op derives it, so that D can stay symbolic
        scale = query.shape[-1] ** -0.5
    if softcap is None:
        softcap = 0.0
    else:
        _checks.check_softcap(softcap)
    if dropout_seed is not None:
        _checks.check_dropout_seed(dropout_seed, query)
    if dropout_p == 0.0:
        dropout_seed = None
    else:
        _checks.check_dropout_p(dropout_p)
        dropout_seed = _seed_tensor(dropout_seed, device)

    out, lse = attention_op(query, key, value, *options, scale, softcap, dropout_p, dropout_seed)
    if rank < 4:
        first = (0,) * (4 - rank)
        out, lse = out[first], lse[first]
    return (out, lse) if return_lse else out


def _autocast(dtype: torch.dtype, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> list[Tensor | None]:
    """Casts what torch's autocast would: not float64, nothing but floating point. A bias follows query."""
    follows = bias is not None and bias.dtype == query.dtype
    tensors = [query, key, value, bias if follows else None]
    cast = [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]
    return cast if follows else [*cast[:3], bias]


def _seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    if seed is None:
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)
    return seed if isinstance(seed, Tensor) else torch.full((), seed, dtype=torch.int64, device=device)
