"""The attention_map op: its fake kernel, its vmap rule, and that it has no derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import library
from .attention_schema import accumulator
from .fused import asks_for_derivative
from .transforms import after_autograd, below_autograd


def _fake(query: Tensor, key: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *_, rows, bins = others
    (B, Hq, Lq, _), Lk = query.shape, key.shape[2]

    def empty(*sizes: int) -> Tensor:
        return query.new_empty((B, Hq, *sizes), dtype=accumulator(query.dtype))

    chosen = 0 if rows is None else rows.shape[0]
    return empty(chosen, Lk), empty(*(bins or (0, 0))), empty(Lk), empty(Lq), empty(Lq)


def _autograd(keyset: Any, *args: Any) -> tuple[Tensor, ...]:
    if asks_for_derivative(args):
        raise RuntimeError(
            "attention_map has no derivative: call it under torch.no_grad(), or on detached tensors"
        )
    with below_autograd():
        return library.attention_map.redispatch(after_autograd(keyset), *args)


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    """The samples, one by one."""

    def sample(x: Any, dim: Any, n: int) -> Any:
        if isinstance(dim, (list, tuple)):
            return [sample(part, d, n) for part, d in zip(x, dim, strict=True)]
        return x if dim is None else x.select(dim, n)

    found = [
        library.attention_map(*(sample(x, dim, n) for x, dim in zip(args, in_dims, strict=True)))
        for n in range(info.batch_size)
    ]
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True)), (0,) * 5


torch.library.register_fake("attention_ext::attention_map", _fake)
torch.library.register_vmap("attention_ext::attention_map", _vmap)
_library = torch.library.Library("attention_ext", "IMPL")
_library.impl(library.attention_map, _autograd, "Autograd", with_keyset=True)
