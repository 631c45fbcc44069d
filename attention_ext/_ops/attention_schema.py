"""The attention op's arguments by name, and its fake kernels: sizes, dtypes and strides of what it returns.

The schema is csrc/bindings'; csrc/README.md explains the mask's six arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DIFFERENTIABLE = (
    "query",
    "key",
    "value",
    "bias",
    "sinks",
    "alibi_slopes",
)  # the order of the backward's outputs


class Call(NamedTuple):
    """Arguments of `_attention_forward` and of the public `attention`, where scale may be None."""

    query: Tensor
    key: Tensor
    value: Tensor
    band: list[int]
    band_offset: Tensor | None
    key_lengths: Tensor | None
    mask_bits: Tensor | None
    row_bounds: Tensor | None
    block_table: list[Tensor]
    bias: Tensor | None
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    scale: float | None
    softcap: float
    dropout_p: float
    dropout_seed: Tensor | None


class BackwardCall(NamedTuple):
    """Arguments of `_attention_backward`: a Call, its results and their gradients, what to make."""

    grad_out: Tensor
    grad_lse: Tensor | None
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    lse: Tensor
    band: list[int]
    band_offset: Tensor | None
    key_lengths: Tensor | None
    mask_bits: Tensor | None
    row_bounds: Tensor | None
    block_table: list[Tensor]
    bias: Tensor | None
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    scale: float
    softcap: float
    dropout_p: float
    dropout_seed: Tensor | None
    needs: list[bool]

    def forward_call(self) -> Call:
        return Call(*self[2:5], *self[7:20])


def default_scale(query: Tensor) -> float:
    return query.shape[-1] ** -0.5


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What the kernels compute in; also the dtype of lse."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_heads(t: Tensor, size: tuple[int, int, int, int]) -> Tensor:
    """A dense tensor in t's memory order of heads and rows: the layout rule of the kernels' outputs."""
    B, H, L, D = size
    if H > 1 and L > 1 and t.stride(1) < t.stride(2):
        return t.new_empty((B, L, H, D)).transpose(1, 2)
    return t.new_empty(size)


def _fake_forward(*args: object) -> tuple[Tensor, Tensor]:
    call = Call(*args)
    query, value = call.query, call.value
    out = empty_heads(query, (*query.shape[:3], value.shape[3]))
    return out, query.new_empty(query.shape[:3], dtype=accumulator(query.dtype))


def _fake_backward(*args: object) -> tuple[Tensor, ...]:
    call = BackwardCall(*args)
    grads = []
    for name, need in zip(DIFFERENTIABLE, call.needs, strict=True):
        t = getattr(call, name)
        if not need or t is None:
            grads.append((call.query if t is None else t).new_empty(0))
        elif name in ("query", "key", "value"):
            grads.append(empty_heads(t, t.shape))
        else:
            grads.append(t.new_empty(t.shape))
    return tuple(grads)


def _fake_pack_mask_bits(keep: Tensor) -> Tensor:
    return keep.new_empty((*keep.shape[:-1], (keep.shape[-1] + 63) // 64), dtype=torch.int64)


def _fake_dense_block_table(block_table: list[Tensor], B: int, Hq: int, Lq: int, Lk: int) -> Tensor:
    return block_table[0].new_empty((B, Hq, Lq, Lk), dtype=torch.bool)


def _fake_build_block_table(block_table: list[Tensor], Lq: int, Lk: int) -> list[Tensor]:
    raise NotImplementedError(
        "_build_block_table: what it makes depends on values; hand the attention op the program itself"
    )


def _fake_dropout_keep(seed: Tensor, dropout_p: float, B: int, H: int, Lq: int, Lk: int) -> Tensor:
    return seed.new_empty((B, H, Lq, Lk), dtype=torch.bool)


def register() -> None:
    torch.library.register_fake("attention_ext::_attention_forward", _fake_forward)
    torch.library.register_fake("attention_ext::attention", _fake_forward)
    torch.library.register_fake("attention_ext::_attention_backward", _fake_backward)
    torch.library.register_fake("attention_ext::_pack_mask_bits", _fake_pack_mask_bits)
    torch.library.register_fake("attention_ext::_build_block_table", _fake_build_block_table)
    torch.library.register_fake("attention_ext::_dense_block_table", _fake_dense_block_table)
    torch.library.register_fake("attention_ext::_dropout_keep", _fake_dropout_keep)
