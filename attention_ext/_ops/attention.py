"""The attention op: autograd, and the front door that chooses a route.

    functional.attention -> attention_op
        -> library.forward          the C++ kernel, where no gradient is wanted
        -> _Attention               reverse mode: library.forward, then library.backward
        -> _AttentionTransformed    the same inside torch.func transforms
        -> attention_unfused        forward mode
        -> library.attention        torch.compile and torch.export: one node in the graph

Arguments travel in the order of `attention_schema.Call`. Where the public op is called, by a graph or
directly, its Autograd kernel `_attention_autograd` takes the route: what register_autograd of torch.library
makes would answer forward mode with zeros and torch.func.grad with an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..masks import LoweredMask
from . import attention_schema, attention_unfused, attention_vmap, library
from .attention_schema import DIFFERENTIABLE, BackwardCall, Call, default_scale
from .fused import raises_when_differentiated
from .transforms import after_autograd, below_autograd, forward_mode_active, transforms_active


def attention_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: LoweredMask,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float | None,
    softcap: float,
    dropout_p: float,
    dropout_seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) for arguments that are checked already; any derivative of it is right."""
    if torch.compiler.is_compiling():  # scale stays None, so that D can be symbolic
        return library.attention(
            query, key, value, *mask, bias, sinks, alibi_slopes, scale, softcap, dropout_p, dropout_seed
        )
    if scale is None:
        scale = default_scale(query)
    args = (query, key, value, *mask, bias, sinks, alibi_slopes, scale, softcap, dropout_p, dropout_seed)
    if forward_mode_active():
        return attention_unfused.attention(Call(*args))
    if transforms_active():
        return _AttentionTransformed.apply(*args)
    if torch.is_grad_enabled() and _requires_grad(query, key, value, bias, sinks, alibi_slopes):
        return _Attention.apply(*args)
    with below_autograd():
        return library.forward(*args)


def _requires_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    slopes: Tensor | None,
) -> bool:
    return (
        query.requires_grad
        or key.requires_grad
        or value.requires_grad
        or (bias is not None and bias.requires_grad)
        or (sinks is not None and sinks.requires_grad)
        or (slopes is not None and slopes.requires_grad)
    )


def _save(ctx: Any, args: tuple[Any, ...], out: Tensor, lse: Tensor) -> None:
    query, key, value, band, offset, lengths, bits, bounds, table, bias, sinks, slopes, *numbers, seed = args
    ctx.save_for_backward(
        query, key, value, out, lse, offset, lengths, bits, bounds, bias, sinks, slopes, seed, *table
    )
    ctx.others = band, *numbers
    ctx.set_materialize_grads(False)


def _attention_backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Any:
    if grad_out is None and grad_lse is None:
        return (None,) * len(Call._fields)
    query, key, value, out, lse, offset, lengths, bits, bounds, bias, sinks, slopes, seed, *table = (
        ctx.saved_tensors
    )
    band, scale, softcap, dropout_p = ctx.others
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    wants = ctx.needs_input_grad
    needs = [*wants[:3], *wants[9:12]]  # those of DIFFERENTIABLE
    args = (
        grad_out, grad_lse, query, key, value, out, lse, band, offset, lengths, bits, bounds, table,
        bias, sinks, slopes, scale, softcap, dropout_p, seed, needs,
    )  # fmt: skip
    if torch.compiler.is_compiling():  # compiled autograd
        grads = library.backward(*args)
    elif forward_mode_active():  # a dual level entered after the forward
        grads = attention_unfused.gradients(BackwardCall(*args))
    elif torch.is_grad_enabled() or transforms_active():  # create_graph=True, or inside torch.func
        grads = _AttentionBackward.apply(*args)
    else:
        with below_autograd():
            grads = library.backward(*args)
    grads = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
    return (*grads[:3], *(None,) * 6, *grads[3:], *(None,) * 4)


class _Attention(torch.autograd.Function):
    """First-order reverse mode in plain eager. A setup_context would cost 25 us a call."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        with below_autograd():
            out, lse = library.forward(*args)
        _save(ctx, args, out, lse)
        return out, lse

    backward = staticmethod(_attention_backward)


class _AttentionTransformed(torch.autograd.Function):
    """The same for torch.func, which needs setup_context and a vmap rule."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        with below_autograd():
            return library.forward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _save(ctx, inputs, *output)

    backward = staticmethod(_attention_backward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return attention_vmap.forward_rule(_AttentionTransformed.apply)(info, in_dims, *args)


_SAVED = object()  # stands for a tensor that ctx keeps


class _AttentionBackward(torch.autograd.Function):
    """The fused backward where its own derivative may be asked for; that one is unfused."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        with below_autograd():
            return library.backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.inputs = [_SAVED if isinstance(x, Tensor) else x for x in inputs]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        call = BackwardCall(*(next(saved) if x is _SAVED else x for x in ctx.inputs))
        names = [
            name
            for name, need in zip(BackwardCall._fields, ctx.needs_input_grad, strict=True)
            if need and name in ("grad_out", "grad_lse", *DIFFERENTIABLE)
        ]
        found = attention_unfused.gradients_backward(call, cotangents, names)
        return tuple(found.get(name) for name in BackwardCall._fields)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return attention_vmap.backward_rule(_AttentionBackward.apply)(info, in_dims, *args)


def _attention_autograd(keyset: Any, *args: Any) -> tuple[Tensor, Tensor]:
    """The public op's Autograd kernel."""
    call = Call(*args)
    if call.scale is None:
        call = call._replace(scale=default_scale(call.query))
    if transforms_active() or forward_mode_active():
        return attention_unfused.attention(call)
    if torch.is_grad_enabled() and _requires_grad(*(getattr(call, name) for name in DIFFERENTIABLE)):
        return _Attention.apply(*call)
    with below_autograd():
        return library.attention.redispatch(after_autograd(keyset), *args)


attention_schema.register()
attention_vmap.register()
_library = torch.library.Library("attention_ext", "IMPL")
_library.impl(library.attention, _attention_autograd, "Autograd", with_keyset=True)
for _op in (library.forward, library.backward, attention_vmap.backward_without_table):
    _library.impl(_op, raises_when_differentiated(_op, "attention"), "Autograd", with_keyset=True)
