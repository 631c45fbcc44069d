"""The delta rule op: its arguments by name, fake kernels, the formula."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _reference_linear
from . import library
from .attention_schema import accumulator, empty_heads
from .fused import FusedOperator, raises_when_differentiated
from .linear_attention import RECURRENCE, fake_gradients, fold, heads


class Call(NamedTuple):
    """Arguments of `_delta_rule_forward` and of the public op."""

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor
    decay: Tensor | None
    scale: float
    key_lengths: Tensor | None
    cu_seqlens: Tensor | None
    initial_state: Tensor | None


DIFFERENTIABLE = ("query", "key", "value", "beta", "decay", "initial_state")


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor]:
    call = Call(*args)
    query, value = call.query, call.value
    B, _, L, D = query.shape
    H, Hs = heads(call)
    n = B if call.cu_seqlens is None else call.cu_seqlens.shape[0] - 1
    state = query.new_empty((n, Hs, D, value.shape[3]), dtype=accumulator(query.dtype))
    return empty_heads(query, (B, H, L, value.shape[3])), state


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    _, call, needs = operator.split_backward_args(args)
    return fake_gradients(call, DIFFERENTIABLE, needs)


def _fake_step(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> Tensor:
    H = max(t.shape[1] for t in (query, key, value))
    return empty_heads(query, (query.shape[0], H, query.shape[2], value.shape[3]))


def _formula(call: Call) -> tuple[Tensor, Tensor]:
    return _reference_linear.delta_rule(
        *call[:4],
        decay=call.decay,
        scale=call.scale,
        key_lengths=call.key_lengths,
        cu_seqlens=call.cu_seqlens,
        initial_state=call.initial_state,
        return_state=True,
    )


torch.library.register_fake("attention_ext::_delta_rule_forward", _fake_forward)
torch.library.register_fake("attention_ext::delta_rule", _fake_forward)
torch.library.register_fake("attention_ext::_delta_rule_backward", _fake_backward)
torch.library.register_fake("attention_ext::_delta_rule_step", _fake_step)
_library = torch.library.Library("attention_ext", "IMPL")
_step_kernel = raises_when_differentiated(library.delta_step, "delta_rule")
_library.impl(library.delta_step, _step_kernel, "Autograd", with_keyset=True)
operator = FusedOperator(
    "delta_rule",
    forward=library.delta_forward,
    backward=library.delta_backward,
    public=library.delta_rule,
    call=Call,
    differentiable=DIFFERENTIABLE,
    cotangents=(0, 1),
    saved=(0,),
    formula=_formula,
    fold=fold,
    described=RECURRENCE,
)
