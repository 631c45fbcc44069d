"""The select_blocks op: its arguments by name, fake kernel, vmap, and what a derivative of it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import library
from .transforms import after_autograd, below_autograd


class Call(NamedTuple):
    """Arguments of the op. compressed: [] or [length, stride, positions]."""

    query: Tensor
    key: Tensor
    key_keep: Tensor | None
    block_size: int
    query_block_size: int
    top_k: int
    initial_blocks: int
    local_blocks: int
    causal: bool
    share_heads: bool
    compressed: list[int]
    scale: float


def select_blocks_op(call: Call) -> Tensor:
    """The indices, for arguments that are checked already. Integers: constants for every derivative."""
    return library.select_blocks(*call._replace(query=call.query.detach(), key=call.key.detach()))


def _fake(*args: Any) -> Tensor:
    call = Call(*args)
    B, Hq, Lq, _ = call.query.shape
    heads = call.key.shape[1] if call.share_heads else Hq
    rows = (Lq + call.query_block_size - 1) // call.query_block_size
    return call.query.new_empty((B, heads, rows, call.top_k), dtype=torch.int32)


def _autograd(keyset: Any, *args: Any) -> Tensor:
    with below_autograd():
        return library.select_blocks.redispatch(after_autograd(keyset), *args)


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    """The samples become rows of the batch."""
    call, dims, size = Call(*args), Call(*in_dims), info.batch_size

    def fold(t: Tensor, dim: int | None) -> Tensor:
        t = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        return t.flatten(0, 1)

    keep = None if call.key_keep is None else fold(call.key_keep, dims.key_keep).contiguous()
    folded = call._replace(query=fold(call.query, dims.query), key=fold(call.key, dims.key), key_keep=keep)
    indices = library.select_blocks(*folded)
    return indices.unflatten(0, (size, indices.shape[0] // size)), 0


torch.library.register_fake("attention_ext::select_blocks", _fake)
torch.library.register_vmap(library.select_blocks, _vmap)
_library = torch.library.Library("attention_ext", "IMPL")
_library.impl(library.select_blocks, _autograd, "Autograd", with_keyset=True)
