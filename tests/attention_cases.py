"""What the tests of attention vary: memory layouts, broadcast shapes, and the terms of the score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from helpers import FLOOR, Shape, assert_close_to
from torch import Tensor

from attention_ext import attention, reference

# layouts


def _around(t: Tensor, dims: tuple[int, ...], step: int = 1) -> Tensor:
    """A view with the values of t in a larger tensor of NaN: what is read beside it shows."""
    sizes = [step * n + 3 if d in dims else n for d, n in enumerate(t.shape)]
    view = torch.full(sizes, torch.nan, dtype=t.dtype)
    for d in dims:
        view = view.narrow(d, 2, step * t.shape[d])
        view = view[(slice(None),) * d + (slice(None, None, step),)]
    return view.copy_(t)


def _in_order(t: Tensor, *order: int) -> Tensor:
    """The values of t, the dimensions in memory in this order."""
    inverse = [order.index(d) for d in range(4)]
    return t.permute(order).contiguous().permute(inverse)


def _broadcast(t: Tensor, *dims: int) -> Tensor:
    """t's first element along dims, expanded: stride 0. (Not the values of t.)"""
    for d in dims:
        t = t.narrow(d, 0, min(1, t.shape[d])).expand(
            *(n if e != d else t.shape[d] for e, n in enumerate(t.shape))
        )
    return t


# Of a tensor (B, H, L, D).
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "heads_last": lambda t: _in_order(t, 0, 2, 1, 3),
    "length_last": lambda t: _in_order(t, 0, 1, 3, 2),
    "batch_last": lambda t: _in_order(t, 3, 2, 1, 0),
    "sliced": lambda t: _around(t, (0, 1, 2, 3)),
    "sliced_heads_last": lambda t: _around(t.transpose(1, 2), (1, 3)).transpose(1, 2),
    "every_second": lambda t: _around(t, (2, 3), step=2),
    "one_batch_row": lambda t: _broadcast(t, 0),
    "one_head": lambda t: _broadcast(t, 1),
    "one_row": lambda t: _broadcast(t, 2),
    "one_column": lambda t: _broadcast(t, 3),
    "one_number": lambda t: _broadcast(t, 0, 1, 2, 3),
}

# broadcasting

# Which of B, Hq, Lq, Lk a bias or dense mask varies over.
BROADCASTS = tuple(product((False, True), repeat=4))


def broadcast_shape(s: Shape, varies: tuple[bool, ...]) -> list[int]:
    return [n if own else 1 for n, own in zip((s.B, s.Hq, s.Lq, s.Lk), varies, strict=True)]


def broadcast_name(varies: tuple[bool, ...]) -> str:
    return "".join(letter if own else "1" for letter, own in zip("BHQK", varies, strict=True))


# terms of the score: options of a call, for a shape and a dtype


def some_masked_bias(s: Shape, dtype: torch.dtype) -> Tensor:
    """A full bias, -inf for a third of the pairs and for all of one row."""
    bias = torch.randn(s.B, s.Hq, s.Lq, s.Lk, dtype=dtype)
    bias.masked_fill_(torch.rand_like(bias) < 0.3, -torch.inf)
    bias[:, :, s.Lq // 2] = -torch.inf
    return bias


TERMS: dict[str, Callable[[Shape, torch.dtype], dict[str, Any]]] = {
    "plain": lambda s, dtype: {},
    "scale": lambda s, dtype: {"scale": 0.3},
    "negative_scale": lambda s, dtype: {"scale": -0.7},
    "zero_scale": lambda s, dtype: {"scale": 0.0},
    "softcap": lambda s, dtype: {"softcap": 1.5},
    "sinks": lambda s, dtype: {"sinks": torch.randn(s.Hq)},
    "sinks_own_dtype": lambda s, dtype: {"sinks": torch.randn(s.Hq, dtype=dtype)},
    "alibi": lambda s, dtype: {"alibi_slopes": torch.rand(s.Hq)},
    "alibi_per_row": lambda s, dtype: {"alibi_slopes": torch.rand(s.B, s.Hq, dtype=dtype)},
    "bias": lambda s, dtype: {"bias": torch.randn(s.B, s.Hq, s.Lq, s.Lk, dtype=dtype)},
    "bias_shared": lambda s, dtype: {"bias": torch.randn(s.Lq, s.Lk)},
    "bias_masks": lambda s, dtype: {"bias": some_masked_bias(s, dtype)},
    "dropout": lambda s, dtype: {"dropout_p": 0.3, "dropout_seed": 1234567890123456789},
    "everything": lambda s, dtype: {
        "scale": 0.4,
        "softcap": 2.5,
        "sinks": torch.randn(s.Hq),
        "alibi_slopes": torch.rand(s.Hq),
        "bias": torch.randn(s.Hq, 1, s.Lk, dtype=dtype),
        "dropout_p": 0.2,
        "dropout_seed": torch.tensor(-3),
    },
}


# comparison


def assert_attention_near(
    *qkv: Tensor, cotangents: Sequence[Tensor], return_lse: bool, coherent: bool = False, **options: Any
) -> None:
    """helpers.assert_attention_matches with a floor that follows what the gradients are made of.

    A gradient may be what is left of sums that cancel: with a single key, or values that are all the same,
    those of the scores are 0 but for rounding, and so is their sum in a bias broadcast over the keys.
    coherent: inputs may repeat, and then all rows round alike, else their errors are independent.
    """
    named = {name: t for name, t in options.items() if isinstance(t, Tensor) and t.is_floating_point()}
    tensors, fixed = [*qkv, *named.values()], {name: x for name, x in options.items() if name not in named}

    def run(function: Callable[..., Any], dtype: torch.dtype | None) -> list[Tensor]:
        leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
        results = function(
            *leaves[:3], **dict(zip(named, leaves[3:], strict=True)), **fixed, return_lse=return_lse
        )
        results = results if return_lse else (results,)
        given = [c.to(r.dtype) for c, r in zip(cotangents, results, strict=True)]
        return [*results, *torch.autograd.grad(results, leaves, given)]

    found, exact, plain = (
        run(attention, None),
        run(reference.attention, torch.float64),
        run(reference.attention, None),
    )
    results = ["out", *["lse"] * return_lse]
    query, key, value = qkv
    for n, name in enumerate([*results, "query", "key", "value", *named]):
        three = found[n], exact[n], plain[n]
        assert three[0].dtype == three[2].dtype, f"{name}: {three[0].dtype}, expected {three[2].dtype}"
        assert three[0].shape == three[2].shape, f"{name}: {three[0].shape}, expected {three[2].shape}"
        size = 1.0
        if n >= len(results):
            # Terms of grad_out * value and grad_out * out, in query's dtype though bias may be float32.
            size = (
                FLOOR[query.dtype] / FLOOR[three[0].dtype] * _largest_row(cotangents[0]) * _largest_row(value)
            )
            rows = query.shape[:3].numel() / max(1, three[0].shape[:3].numel())  # added up
            if name in named:
                size *= rows if coherent else rows**0.5
            if name == "key" and coherent:
                size *= query.shape[1] // key.shape[1] * query.shape[2]
            if name == "alibi_slopes":
                size *= max(query.shape[2], key.shape[2])
            name = f"gradient of {name}"
        size = min(size, torch.finfo(three[0].dtype).max / 2)
        assert_close_to(*(torch.cat([t.flatten(), t.new_tensor([size])]) for t in three), name)


def _largest_row(t: Tensor) -> float:
    norms = torch.linalg.vector_norm(t.detach().double(), dim=-1).flatten()
    return max([1.0, *norms.tolist()])
