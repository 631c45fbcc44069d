"""Batching rules: torch.func.vmap of an attention op is one call, its dimension folded into the batch.

Where a sample must not see its place in the batch (dropout counts from its own row), or an argument has no
batch dimension to fold into (sinks), the samples go one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import library
from .attention_schema import DIFFERENTIABLE, BackwardCall, Call
from .fused import one_by_one, sample
from .transforms import schema_of

_BROADCAST = ("mask_bits", "bias")  # dimension 0 is B or 1; alibi_slopes is (Hq,) or (B, Hq)
_SHARED = ("sinks", "dropout_seed")  # no batch dimension
# Of the other tensors dimension 0 is B.


def forward_rule(op: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The vmap rule of an op, or autograd.Function, that takes the arguments of `Call`."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        call, dims, size = Call(*args), Call(*in_dims), info.batch_size
        if _goes_one_by_one(call, dims):
            return one_by_one(op, call, dims, size)
        rows = _sample_shape(call, dims, "query")[0]
        results = op(*_fold(call, dims, size, rows))
        return tuple(t.unflatten(0, (size, rows)) for t in results), (0, 0)

    return rule


def backward_rule(op: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The vmap rule of an op, or autograd.Function, that takes the arguments of `BackwardCall`."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        call, dims, size = BackwardCall(*args), BackwardCall(*in_dims), info.batch_size
        wanted = [
            name
            for name, need in zip(DIFFERENTIABLE, call.needs, strict=True)
            if need and getattr(call, name) is not None
        ]
        if _goes_one_by_one(call, dims) or "sinks" in wanted:
            return one_by_one(op, call, dims, size)
        rows = _sample_shape(call, dims, "query")[0]
        # One gradient per sample needs one argument per sample: over a shared one the kernel would sum.
        grads = dict(zip(DIFFERENTIABLE, op(*_fold(call, dims, size, rows, per_sample=wanted)), strict=True))
        for name in wanted:
            grad, shape = grads[name].unflatten(0, (size, rows)), _sample_shape(call, dims, name)
            if grad.dim() > len(shape) + 1 or grad.shape[1] != shape[0]:
                grad = grad.sum(1).view(size, *shape)
            grads[name] = grad
        return tuple(grads.values()), tuple(0 if name in wanted else None for name in grads)

    return rule


def _fold(call: Any, dims: Any, size: int, rows: int, per_sample: list[str] | tuple[str, ...] = ()) -> Any:
    """The call with all `size` samples of `rows` batch rows in one batch."""
    folded = {}
    for name, t in call._asdict().items():
        if not isinstance(t, Tensor) or name in _SHARED:
            continue
        dim = getattr(dims, name)
        if dim is None:
            shared = t.dim() == 1 if name == "alibi_slopes" else name in _BROADCAST and t.shape[0] == 1
            if shared and name not in per_sample:
                continue
            t = t.expand(size, *t.shape)
        else:
            t = t.movedim(dim, 0)
        if name == "alibi_slopes" and t.dim() == 2:
            t = t[:, None]
        t = t.expand(size, rows, *t.shape[2:]).flatten(0, 1)
        folded[name] = t if t.is_floating_point() else t.contiguous()  # as the kernels want the mask's parts
    return call._replace(**folded)


def _goes_one_by_one(call: Any, dims: Any) -> bool:
    # A block table has its batch inside, where no dimension can be folded into it.
    return (
        call.dropout_p > 0
        or bool(call.block_table)
        or any(getattr(dims, name) is not None for name in _SHARED)
    )


def _sample_shape(call: Any, dims: Any, name: str) -> tuple[int, ...]:
    shape, dim = list(getattr(call, name).shape), getattr(dims, name)
    if dim is not None:
        del shape[dim]
    return tuple(shape)


def _pack_mask_bits_rule(info: Any, in_dims: tuple[Any, ...], keep: Tensor) -> Any:
    return library.pack_mask_bits(keep.movedim(in_dims[0], 0)), 0


def _dense_block_table_rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    results = [
        library.dense_block_table(*(sample(x, dim, n) for x, dim in zip(args, in_dims, strict=True)))
        for n in range(info.batch_size)
    ]
    return torch.stack(results), 0


# torch.autograd.grad(is_grads_batched=True), and what builds on it, uses torch's first vmap. That one loops
# over the samples of any op but for those that take a list of tensors: so the backward has a twin without.
_library = torch.library.Library("attention_ext", "FRAGMENT")
_TABLE = BackwardCall._fields.index("block_table")
_schema = schema_of(library.backward).removeprefix("attention_ext::_attention_backward")
_library.define("_attention_backward_without_table" + _schema.replace("Tensor[] block_table, ", ""))
backward_without_table = torch.ops.attention_ext._attention_backward_without_table.default


def _backward_without_table(*args: Any) -> tuple[Tensor, ...]:
    return library.backward(*args[:_TABLE], [], *args[_TABLE:])


def _backward_in_first_vmap(*args: Any) -> tuple[Tensor, ...]:
    if args[_TABLE]:
        raise NotImplementedError("attention: batched gradients with a block table")
    return backward_without_table(*args[:_TABLE], *args[_TABLE + 1 :])


def register() -> None:
    torch.library.register_vmap(library.forward, forward_rule(library.forward))
    torch.library.register_vmap(library.attention, forward_rule(library.attention))
    torch.library.register_vmap(library.backward, backward_rule(library.backward))
    torch.library.register_vmap(library.pack_mask_bits, _pack_mask_bits_rule)
    torch.library.register_vmap(library.dense_block_table, _dense_block_table_rule)
    _library.impl(backward_without_table, _backward_without_table, "CompositeExplicitAutograd")
    _library.impl(library.backward, _backward_in_first_vmap, "Batched")
