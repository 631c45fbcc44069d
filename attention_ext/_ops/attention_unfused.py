"""What the kernels do not differentiate: forward mode and every order beyond the first, through the plain formula.

Memory grows with Lq·Lk. Everything here is made of differentiable torch ops, so it can be differentiated and
batched any number of times.
"""

from __future__ import annotations

import torch
from torch import Tensor


from .._warnings import warn_unfused
from .attention_schema import DIFFERENTIABLE, BackwardCall, Call, default_scale

Gradients = tuple[Tensor | None, ...]


def attention(call: Call) -> tuple[Tensor, Tensor]:
    """(out, lse) of the call."""
    warn_unfused("attention")
    scale = default_scale(call.query) if call.scale is None else call.scale
    return reference.attention(
        call.query,
        call.key,
        call.value,
        mask=_LoweredMask(call),
        bias=call.bias,
        scale=scale,
        softcap=call.softcap,
        sinks=call.sinks,
        alibi_slopes=call.alibi_slopes,
        dropout_p=call.dropout_p,
        dropout_seed=call.dropout_seed,
        return_lse=True,
    )


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
