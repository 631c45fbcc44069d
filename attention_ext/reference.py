"""The operators as plain torch formulas: the oracle of the tests, and the route of unfused derivatives.

Made of differentiable torch ops without in-place writes: differentiable any number of times in either mode,
and vmap-able. Memory grows with Lq·Lk. All is computed in the dtypes that come in, as plain PyTorch would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks
from ._map_arguments import AttentionMap, chosen_rows, number_of_bins
from ._ops.transforms import is_fake
from ._philox import philox4x32
from ._reference_linear import delta_rule, linear_attention
from ._reference_select import select_blocks
from .masks import Mask

__all__ = [
    "attention",
    "attention_map",
    "attention_weights",
    "delta_rule",
    "dropout_keep",
    "linear_attention",
    "merge_attention_states",
    "select_blocks",
]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention_ext.attention` as a formula: the same arguments, results and errors.

    mask may also be a bool tensor, True = attend, broadcastable to (B, Hq, Lq, Lk).
    """
    _checks.check_tensors(query, key, value)
    B, Hq, Lq, Lk = _checks.check_qkv(query, key, value)
    rank = query.dim()
    query, key, value = _four(query), _heads(_four(key), Hq), _heads(_four(value), Hq)
    allowed = _allowed(mask, bias, query, B, Hq, Lq, Lk)
    if allowed is not None:
        query, key, value = _seeing(query, allowed), _seen(key, allowed), _seen(value, allowed)
    by_pairs = allowed is not None and _has_nonfinite(key, value)
    with torch.autocast(query.device.type, enabled=False):
        scores = _scores(query, key, allowed, by_pairs, bias, scale, softcap, alibi_slopes)
        weights, lse = _softmax(scores, allowed, sinks)
        weights = _dropout(weights, dropout_p, dropout_seed).to(value.dtype)
        if by_pairs:
            pairs = torch.where(allowed[..., None], value[:, :, None], 0.0)
            out = (weights[..., None] * pairs).sum(-2)
        else:
            out = weights @ value
    if allowed is not None:
        out = _seeing(out, allowed)
    out, lse = _like_input(out, rank), _like_input(lse, rank)
    return (out, lse) if return_lse else out


def attention_weights(
    query: Tensor,
    key: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
) -> Tensor:
    """The weights (B, Hq, Lq, Lk) of the values in `attention`, after dropout. Its arguments, without value.

    Rows add up to 1 but for what sinks and dropout take; a row with no allowed key is 0.
    """
    _checks.check_tensors(query, key, key)
    B, Hq, Lq, Lk = _checks.check_qkv(query, key, key)
    rank = query.dim()
    query, key = _four(query), _heads(_four(key), Hq)
    allowed = _allowed(mask, bias, query, B, Hq, Lq, Lk)
    if allowed is not None:
        query, key = _seeing(query, allowed), _seen(key, allowed)
    by_pairs = allowed is not None and _has_nonfinite(key)
    with torch.autocast(query.device.type, enabled=False):
        scores = _scores(query, key, allowed, by_pairs, bias, scale, softcap, alibi_slopes)
        weights, _ = _softmax(scores, allowed, sinks)
        weights = _dropout(weights, dropout_p, dropout_seed).to(query.dtype)
    return _like_input(weights, rank)


def attention_map(
    query: Tensor,
    key: Tensor,
    mask: Mask | Tensor | None = None,
    *,
    rows: Tensor | Sequence[int] | str | None = None,
    bins: int | tuple[int, int] | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
) -> AttentionMap:
    """`attention_ext.attention_map` as a formula: made of all weights. Differentiable, but for no purpose.

    mask may also be a bool tensor, True = attend, broadcastable to (B, Hq, Lq, Lk).
    """
    terms = {"bias": bias, "scale": scale, "softcap": softcap, "sinks": sinks, "alibi_slopes": alibi_slopes}
    weights = attention_weights(query, key, mask=mask, **terms)
    lse = attention(query, key, key, mask=mask, **terms, return_lse=True)[1]
    weights = weights.to(lse.dtype)
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    Lq, Lk = weights.shape[-2:]
    chosen = None if rows is None else weights[..., chosen_rows(rows, Lq, weights.device), :]
    binned = None
    if bins is not None:
        sizes = number_of_bins(bins, Lq, Lk)
        binned = _bin_means(_bin_means(weights, -2, sizes[0]), -1, sizes[1])
    return AttentionMap(chosen, binned, weights.sum(-2), entropy, lse)


def _bin_means(t: Tensor, dim: int, bins: int) -> Tensor:
    if bins == 0:  # and so is the length
        return t
    inner = [n * t.shape[dim] // bins for n in range(1, bins)]
    return torch.stack([part.mean(dim) for part in t.tensor_split(inner, dim)], dim)


def dropout_keep(
    seed: int | Tensor,
    p: float,
    B: int,
    H: int,
    Lq: int,
    Lk: int,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which weights dropout with probability p keeps: bool (B, H, Lq, Lk), a function of (seed, b, h, q, k).

    Weight (b, h, q, k) is kept iff word k % 4 of philox at counter (k // 4, q, h, b) is at least p * 2**32.
    seed: an int or an int64 tensor of shape (); device: None is the seed's, or torch's default.
    """
    if device is None and isinstance(seed, Tensor):
        device = seed.device
    sizes = (B, H, Lq, (Lk + 3) // 4)
    b, h, q, k4 = (
        torch.arange(n, device=device).reshape([-1 if i == axis else 1 for i in range(4)]).expand(sizes)
        for axis, n in enumerate(sizes)
    )
    words = torch.stack(philox4x32(seed, (k4, q, h, b)), dim=-1).reshape(B, H, Lq, 4 * sizes[3])[..., :Lk]
    threshold = min(2**32 - 1, round(p * 2**32))
    return words >= (threshold if p < 1 else 2**32)


def merge_attention_states(
    outs: Sequence[Tensor] | Tensor, lses: Sequence[Tensor] | Tensor
) -> tuple[Tensor, Tensor]:
    """`attention_ext.merge_attention_states` as a formula: outputs weighted by their denominators."""
    out, lse = torch.stack(tuple(outs)), torch.stack(tuple(lses))
    nonempty = lse > -math.inf
    somewhere = nonempty.any(0)
    # Rows without any part get a finite stand-in: a NaN made there would come back in the gradient.
    total = torch.logsumexp(torch.where(somewhere, lse, 0.0), 0)
    weights = torch.where(nonempty, torch.exp(torch.where(nonempty, lse, 0.0) - total), 0.0)
    out = torch.where(nonempty[..., None], out, 0.0)
    merged = (weights.to(out.dtype)[..., None] * out).sum(0)
    return merged, torch.where(somewhere, total, -math.inf)


def _four(t: Tensor) -> Tensor:
    return t[(None,) * (4 - t.dim())]


def _like_input(t: Tensor, rank: int) -> Tensor:
    return t[(0,) * (4 - rank)]


def _heads(t: Tensor, Hq: int) -> Tensor:
    """Key or value heads, one for each query head: h reads h // (Hq / Hkv)."""
    return t if t.shape[1] == Hq else t.repeat_interleave(Hq // t.shape[1], dim=1)


def _allowed(
    mask: Mask | Tensor | None, bias: Tensor | None, query: Tensor, B: int, Hq: int, Lq: int, Lk: int
) -> Tensor | None:
    """What mask and bias allow, as a bool tensor that broadcasts to (B, Hq, Lq, Lk); None where all is."""
    allowed = None
    if isinstance(mask, Tensor):
        allowed = _four(mask)
    elif mask is not None:
        _checks.check_mask(mask, Mask)
        allowed = mask.dense(Lq, Lk).to(query.device)
    if bias is not None:
        _checks.check_bias(bias, query, B, Hq, Lq, Lk)
        finite = _four(bias) != -math.inf
        allowed = finite if allowed is None else allowed & finite
    if allowed is not None:
        sizes = zip(allowed.shape, (B, Hq, Lq, Lk), strict=True)
        if allowed.dtype != torch.bool or any(own != 1 and own != size for own, size in sizes):
            expected = f"bool, broadcastable to ({B}, {Hq}, {Lq}, {Lk})"
            raise ValueError(
                f"mask: expected {expected}, got {allowed.dtype} of shape {tuple(allowed.shape)}"
            )
        allowed = allowed.expand(-1, -1, -1, Lk)
    return allowed


def _seen(t: Tensor, allowed: Tensor) -> Tensor:
    """Keys or values, 0 where no query sees them: a NaN there reaches nothing, gradients neither."""
    return torch.where(allowed.any(-2)[..., None], t, 0.0)


def _seeing(t: Tensor, allowed: Tensor) -> Tensor:
    """Queries or outputs, 0 where they see no key; what comes in as a gradient there stops, too."""
    return torch.where(allowed.any(-1)[..., None], t, 0.0)


def _scores(
    query: Tensor,
    key: Tensor,
    allowed: Tensor | None,
    by_pairs: bool,
    bias: Tensor | None,
    scale: float | None,
    softcap: float | None,
    alibi_slopes: Tensor | None,
) -> Tensor:
    """The scores (B, Hq, Lq, Lk) before the softmax, -inf where masked."""
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    if by_pairs:
        pairs = torch.where(allowed[..., None], key[:, :, None], 0.0)
        scores = (query[:, :, :, None] * pairs).sum(-1)
    else:
        scores = query @ key.transpose(-2, -1)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if alibi_slopes is not None:
        Lq, Lk = scores.shape[-2:]
        position = torch.arange(Lq, device=query.device) + (Lk - Lq)
        distance = (position[:, None] - torch.arange(Lk, device=query.device)).abs()
        dtype = _accumulator(scores)
        scores = scores - alibi_slopes.to(dtype)[..., None, None] * distance.to(dtype)
    return scores if allowed is None else torch.where(allowed, scores, -math.inf)


def _softmax(scores: Tensor, allowed: Tensor | None, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weights, and the logarithm of their denominator. An empty row makes no NaN on the way."""
    logits = scores
    if sinks is not None:
        column = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
        logits = torch.cat([scores, column.to(torch.promote_types(scores.dtype, sinks.dtype))], dim=-1)
    nonempty = None
    if allowed is not None:
        nonempty = allowed.any(-1, keepdim=True)
        if sinks is not None:
            nonempty = nonempty | (sinks[None, :, None, None] > -math.inf)
        logits = torch.where(nonempty, logits, 0.0)
    weights = torch.softmax(logits, dim=-1)[..., : scores.shape[-1]]
    lse = torch.logsumexp(logits.to(_accumulator(logits)), dim=-1)
    if allowed is not None:
        weights = torch.where(allowed, weights, 0.0)
        lse = torch.where(nonempty[..., 0], lse, -math.inf)
    return weights, lse


def _dropout(weights: Tensor, p: float, seed: int | Tensor | None) -> Tensor:
    _checks.check_dropout_p(p)
    if p == 0:
        return weights
    if seed is None:
        seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device=weights.device)
    keep = dropout_keep(seed, p, *weights.shape, device=weights.device)
    return torch.where(keep, weights * (1 / (1 - p) if p < 1 else 0.0), 0.0)


def _accumulator(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _has_nonfinite(*tensors: Tensor) -> bool:
    """Is there a NaN or an infinity, as far as values can be looked at?

    Masked ones, 0 * NaN, are then kept out pair by pair, in memory that grows with Lq·Lk·D.
    """
    # To look at a fake one leaves a symbol behind that torch.compile asks for later.
    if torch.compiler.is_compiling() or any(is_fake(t) for t in tensors):
        return False
    try:
        return not all(bool(t.isfinite().all()) for t in tensors)
    except RuntimeError:  # vmapped tensors have no single value
        return False
