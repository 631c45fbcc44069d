"""Forward mode and every order beyond the first, which the kernels do not do: through the plain formula.

Memory grows with Lq·Lk. Everything here is made of differentiable torch ops, so it can be differentiated and
batched any number of times.
"""

from __future__ import annotations

from functools import reduce
from operator import and_

import torch
from torch import Tensor

from .. import reference
from .._warnings import warn_unfused
from ..masks._lowering import dense_table
from .attention_schema import DIFFERENTIABLE, BackwardCall, Call, accumulator

Gradients = tuple[Tensor | None, ...]


def attention(call: Call) -> tuple[Tensor, Tensor]:
    """(out, lse) of the call."""
    warn_unfused("attention")
    dtype = call.query.dtype
    inputs = {
        name: t.to(accumulator(dtype)) for name in DIFFERENTIABLE if (t := getattr(call, name)) is not None
    }
    call = call._replace(**inputs)
    out, lse = reference.attention(
        call.query,
        call.key,
        call.value,
        mask=_allowed(call),
        bias=call.bias,
        scale=call.scale,
        softcap=call.softcap,
        sinks=call.sinks,
        alibi_slopes=call.alibi_slopes,
        dropout_p=call.dropout_p,
        dropout_seed=call.dropout_seed,
        return_lse=True,
    )
    return out.to(dtype), lse


def _allowed(call: Call) -> Tensor | None:
    """The lowered mask as a bool tensor that broadcasts to (B, Hq, Lq, Lk)."""
    if list(call.band[4:]) not in ([], [0, 0]) or call.row_bounds is not None:
        raise ValueError("attention: this derivative does not know the reserved parts of the mask")
    i = torch.arange(call.query.shape[2], device=call.query.device)[:, None]
    j = torch.arange(call.key.shape[2], device=call.query.device)
    parts = []
    if call.band:
        distance = (j - i)[None, None]
        if call.band_offset is not None:
            distance = distance - call.band_offset[:, None, None, None]
        parts.append((distance >= call.band[0]) & (distance <= call.band[1]))
        if call.band[2] != 1:
            parts.append((distance - call.band[3]) % call.band[2] == 0)
    if call.key_lengths is not None:
        parts.append(j < call.key_lengths[:, None, None, None])
    if call.mask_bits is not None:
        words = call.mask_bits.index_select(-1, j // 64)
        parts.append((words >> (j % 64)) & 1 == 1)
    if call.block_table:
        sizes = (*call.query.shape[:3], call.key.shape[2])
        parts.append(dense_table(call.block_table, sizes, call.query.device))
    return reduce(and_, parts) if parts else None


def gradients(call: BackwardCall) -> Gradients:
    """The first-order gradients in the order of DIFFERENTIABLE, None where not needed."""
    names = [name for name, need in zip(DIFFERENTIABLE, call.needs, strict=True) if need]
    forward = call.forward_call()

    def formula(*variables: Tensor) -> tuple[Tensor, Tensor]:
        return attention(forward._replace(**dict(zip(names, variables, strict=True))))

    _, pullback = torch.func.vjp(formula, *(getattr(call, name) for name in names))
    grad_lse = torch.zeros_like(call.lse) if call.grad_lse is None else call.grad_lse
    found = dict(zip(names, pullback((call.grad_out, grad_lse)), strict=True))
    return tuple(found.get(name) for name in DIFFERENTIABLE)


def gradients_backward(call: BackwardCall, cotangents: Gradients, names: list[str]) -> dict[str, Tensor]:
    """Of the gradients' cotangents, what flows back to the named arguments of the call.

    out and lse get nothing: they are functions of the other arguments, and the formula starts from those.
    """

    def formula(*variables: Tensor) -> tuple[Tensor, ...]:
        found = gradients(call._replace(**dict(zip(names, variables, strict=True))))
        return tuple(g for g in found if g is not None)

    _, pullback = torch.func.vjp(formula, *(getattr(call, name) for name in names))
    needed = tuple(c for c, need in zip(cotangents, call.needs, strict=True) if need)
    return dict(zip(names, pullback(needed), strict=True))
