"""The linear attention op: its arguments by name, fake kernels, the formula, batching."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _reference_linear
from . import library
from .attention_schema import accumulator, empty_heads
from .fused import FusedOperator, raises_when_differentiated

FEATURE_MAPS = ("identity", "elu", "relu", "softmax")  # as numbered in csrc/core/feature_map.h


class Call(NamedTuple):
    """Arguments of `_linear_attention_forward` and of the public op."""

    query: Tensor
    key: Tensor
    value: Tensor
    feature_map: int
    causal: bool
    decay: Tensor | None
    scale: float
    normalize: bool
    eps: float
    key_lengths: Tensor | None
    cu_seqlens: Tensor | None
    initial_state: Tensor | None
    initial_normalizer: Tensor | None


RECURRENCE = "a plain recurrence, token by token, which holds the states of all tokens in memory"
DIFFERENTIABLE = ("query", "key", "value", "decay", "initial_state", "initial_normalizer")


def heads(call: Any) -> tuple[int, int]:
    """H and Hs."""
    states = max(call.key.shape[1], call.value.shape[1])
    return max(call.query.shape[1], states), states


def _fake_forward(*args: Any) -> tuple[Tensor, ...]:
    call = Call(*args)
    query, value = call.query, call.value
    B, _, Lq, D = query.shape
    H, Hs = heads(call)
    n = B if call.cu_seqlens is None else call.cu_seqlens.shape[0] - 1
    dtype = accumulator(query.dtype)
    return (
        empty_heads(query, (B, H, Lq, value.shape[3])),
        query.new_empty((B, H, Lq) if call.normalize else (0,), dtype=dtype),
        query.new_empty((n, Hs, D, value.shape[3]), dtype=dtype),
        query.new_empty((n, Hs, D) if call.normalize else (0,), dtype=dtype),
    )


def _fake_step(query: Tensor, key: Tensor, value: Tensor, state: Tensor, *others: Any) -> Tensor:
    H = max(t.shape[1] for t in (query, key, value))
    return empty_heads(query, (query.shape[0], H, query.shape[2], value.shape[3]))


def fake_gradients(call: Any, names: tuple[str, ...], needs: list[bool]) -> tuple[Tensor, ...]:
    """Empty tensors as a backward returns them: like query, key and value in their order, others
    contiguous."""
    grads = []
    for name, need in zip(names, needs, strict=True):
        t = getattr(call, name)
        if t is None or not need:
            state = name.startswith("initial")
            dtype = t.dtype if t is not None else accumulator(call.query.dtype) if state else call.query.dtype
            grads.append(call.query.new_empty(0, dtype=dtype))
        elif name in ("query", "key", "value"):
            grads.append(empty_heads(t, t.shape))
        else:
            grads.append(t.new_empty(t.shape))
    return tuple(grads)


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    _, call, needs = operator.split_backward_args(args)
    return fake_gradients(call, DIFFERENTIABLE, needs)


def _formula(call: Call) -> tuple[Tensor, ...]:
    state = call.initial_state
    if state is not None and call.normalize:
        state = (state, call.initial_normalizer)
    out, state = _reference_linear.linear_attention(
        call.query,
        call.key,
        call.value,
        feature_map=FEATURE_MAPS[call.feature_map],
        causal=call.causal,
        decay=call.decay,
        scale=None if call.normalize else call.scale,
        normalize=call.normalize,
        eps=call.eps,
        key_lengths=call.key_lengths,
        cu_seqlens=call.cu_seqlens,
        initial_state=state,
        return_state=True,
    )
    empty = call.query.new_empty(0, dtype=accumulator(call.query.dtype))
    if call.normalize:
        return out, empty, *state
    return out, empty, state, empty


def fold(call: Any, dims: Any, size: int, per_sample: list[str]) -> tuple[Any, int] | None:
    """All samples in one batch, where every tensor has batch rows to fold into; see
    `FusedOperator.forward_rule`."""
    shared = call.decay is not None and call.decay.dim() - (dims.decay is not None) == 1
    if call.cu_seqlens is not None or (shared and (dims.decay is not None or "decay" in per_sample)):
        return None
    rows = call.query.shape[0] if dims.query is None else call.query.movedim(dims.query, 0).shape[1]
    folded = {}
    for name, t in call._asdict().items():
        if not isinstance(t, Tensor) or (name == "decay" and shared):
            continue
        dim = getattr(dims, name)
        t = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        t = t.flatten(0, 1)
        folded[name] = t if t.is_floating_point() else t.contiguous()
    return call._replace(**folded), rows


torch.library.register_fake("attention_ext::_linear_attention_forward", _fake_forward)
torch.library.register_fake("attention_ext::linear_attention", _fake_forward)
torch.library.register_fake("attention_ext::_linear_attention_backward", _fake_backward)
torch.library.register_fake("attention_ext::_linear_attention_step", _fake_step)
_library = torch.library.Library("attention_ext", "IMPL")
_step_kernel = raises_when_differentiated(library.linear_step, "linear_attention")
_library.impl(library.linear_step, _step_kernel, "Autograd", with_keyset=True)
operator = FusedOperator(
    "linear_attention",
    forward=library.linear_forward,
    backward=library.linear_backward,
    public=library.linear_attention,
    call=Call,
    differentiable=DIFFERENTIABLE,
    cotangents=(0, 2, 3),
    saved=(0, 1),
    formula=_formula,
    fold=fold,
    described=RECURRENCE,
)
