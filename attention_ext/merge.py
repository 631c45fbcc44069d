"""Merging attention over disjoint sets of keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks


def merge_attention_states(
    outs: Sequence[Tensor] | Tensor, lses: Sequence[Tensor] | Tensor
) -> tuple[Tensor, Tensor]:
    """The attention over all keys, exactly, from its parts over disjoint sets of keys.

    With `(out, lse) = attention(query, key_part, value_part, ..., return_lse=True)` for each part, the result
    is what one call over all keys returns. Sinks belong to exactly one part; each part draws its own dropout.

    Args:
        outs: the parts' outputs, each (..., Lq, Dv), of one dtype: a sequence, or stacked in dimension 0.
        lses: as many log-sum-exps, each (..., Lq), float32 (or float64), -inf where the part has no key.

    Returns:
        out (..., Lq, Dv) in the dtype of outs, and lse (..., Lq) in that of lses; 0 and -inf where all parts
        are empty. Differentiable in both arguments, any number of times.

    Raises:
        TypeError: not tensors, or dtypes that differ or don't fit.
        ValueError: no parts, or numbers of parts, shapes or devices that don't fit.

    Formula: lse = log sum_p exp(lse_p), out = sum_p exp(lse_p - lse) out_p (Milakov and Gimelshein 2018,
    arXiv:1805.02867; as in ring attention, Liu et al. 2023, arXiv:2310.01889).
    """
    outs, lses = _parts("outs", outs), _parts("lses", lses)
    _check(outs, lses)
    # The largest lse is a shift that cancels: a constant for derivatives.
    shift = lses[0].detach()
    for lse in lses[1:]:
        shift = torch.maximum(shift, lse.detach())
    shift = torch.where(shift == -math.inf, 0.0, shift)
    weights = [torch.exp(lse - shift) for lse in lses]
    total = sum(weights[1:], weights[0])
    somewhere = total > 0
    safe = torch.where(somewhere, total, 1.0)
    merged = None
    for out, lse, weight in zip(outs, lses, weights, strict=True):
        # 0 * NaN: an empty part may hold anything.
        term = torch.where((lse == -math.inf)[..., None], 0.0, out) * (weight / safe)[..., None]
        merged = term if merged is None else merged + term
    return merged.to(outs[0].dtype), torch.where(somewhere, torch.log(safe) + shift, -math.inf)


def _parts(name: str, parts: Sequence[Tensor] | Tensor) -> list[Tensor]:
    if isinstance(parts, Tensor):
        if parts.dim() == 0:
            raise ValueError(f"{name}: expected parts stacked in dimension 0, got a tensor of shape ()")
        parts = parts.unbind(0)
    elif not isinstance(parts, Sequence):
        raise TypeError(f"{name}: expected a sequence of tensors or one tensor, got {type(parts).__name__}")
    if len(parts) == 0:
        raise ValueError(f"{name}: expected at least one part, got none")
    for n, part in enumerate(parts):
        _checks.check_tensor(f"{name}[{n}]", part)
    return list(parts)


def _check(outs: list[Tensor], lses: list[Tensor]) -> None:
    if len(lses) != len(outs):
        raise ValueError(f"lses: expected {len(outs)} parts as in outs, got {len(lses)}")
    first = outs[0]
    lse_dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    if not first.dtype.is_floating_point:
        raise TypeError(f"outs[0]: expected a floating dtype, got {first.dtype}")
    if first.dim() < 2:
        raise ValueError(f"outs[0]: expected shape (..., Lq, Dv), got {tuple(first.shape)}")
    for n, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        for name, t in ((f"outs[{n}]", out), (f"lses[{n}]", lse)):
            if t.device != first.device:
                raise ValueError(f"{name}: expected the device of outs[0], {first.device}, got {t.device}")
        if out.dtype != first.dtype:
            raise TypeError(f"outs[{n}]: expected the dtype of outs[0], {first.dtype}, got {out.dtype}")
        if lse.dtype not in (lse_dtype, torch.float64):
            raise TypeError(f"lses[{n}]: expected dtype {lse_dtype}, got {lse.dtype}")
        if lse.dtype != lses[0].dtype:
            raise TypeError(f"lses[{n}]: expected the dtype of lses[0], {lses[0].dtype}, got {lse.dtype}")
        if out.shape != first.shape:
            raise ValueError(
                f"outs[{n}]: expected the shape of outs[0], {tuple(first.shape)}, got {tuple(out.shape)}"
            )
        if lse.shape != first.shape[:-1]:
            raise ValueError(
                f"lses[{n}]: expected shape {tuple(first.shape[:-1])} as in outs, got {tuple(lse.shape)}"
            )
