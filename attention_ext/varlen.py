"""Attention over sequences of different lengths, without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, functional
from .masks import Mask, Packed


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor | Sequence[int],
    cu_seqlens_k: Tensor | Sequence[int] | None = None,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention` inside each of several sequences that lie one after the other.

    Args:
        query: (total_q, Hq, D), the queries of all sequences.
        key: (total_k, Hkv, D), Hkv divides Hq.
        value: (total_k, Hkv, Dv).
        cu_seqlens_q: integers (sequences + 1,); sequence s has the queries from cu_seqlens_q[s] to
            cu_seqlens_q[s + 1]. It starts at 0, never decreases, and ends at total_q.
        cu_seqlens_k: the same for keys; None = cu_seqlens_q.
        mask: what is allowed inside a sequence, by its own lengths and positions; in a mask with a batch,
            sequence s is row s.
        alibi_slopes: (Hq,); only where queries and keys are cut alike.

    The other arguments are those of :func:`attention`; dropout draws as for one row of the batch.

    Returns:
        out (total_q, Hq, Dv), or (out, lse) with lse (total_q, Hq).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: sizes or numbers that don't fit.
    """
    _checks.check_tensors(query, key, value)
    for name, t in (("query", query), ("key", key), ("value", value)):
        if t.dim() != 3:
            raise ValueError(f"{name}: expected shape (total, H, D), got {tuple(t.shape)}")
    packed = Packed(mask, cu_seqlens_q, cu_seqlens_k)
    if query.device.type != "cpu" and not isinstance(cu_seqlens_q, Tensor):
        packed = packed.to(query.device)
    if alibi_slopes is not None and not _cut_alike(packed):
        raise ValueError("alibi_slopes: expected cu_seqlens_k to be cu_seqlens_q, got other numbers")
    result = functional.attention(
        *(t.transpose(0, 1)[None] for t in (query, key, value)),
        mask=packed,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        return_lse=return_lse,
    )
    if not return_lse:
        return result[0].transpose(0, 1)
    out, lse = result
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def attention_jagged(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, return_lse: bool, **options
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention` of jagged nested tensors (B, H, L, D), L different from row to row."""
    if bias is not None:
        raise ValueError("bias: expected None with nested tensors, whose rows have different lengths")
    tensors = {"query": query, "key": key, "value": value}
    for name, t in tensors.items():
        _check_jagged(name, t)
    if not _same_lengths(key, value):
        raise ValueError(f"value: expected the lengths of key, {key.shape[2]}, got {value.shape[2]}")
    packed = [t.transpose(1, 2).values() for t in tensors.values()]
    result = attention_varlen(*packed, query.offsets(), key.offsets(), return_lse=return_lse, **options)
    parts = [
        torch.nested.nested_tensor_from_jagged(part, query.offsets()).transpose(1, 2)
        for part in (result if return_lse else (result,))
    ]
    return tuple(parts) if return_lse else parts[0]


def _check_jagged(name: str, t: Tensor) -> None:
    if not t.is_nested or t.layout != torch.jagged:
        raise TypeError(f"{name}: expected a nested tensor of layout torch.jagged, as query, got {t.layout}")
    ragged = [d for d, size in enumerate(t.shape) if not isinstance(size, int)]
    if t.dim() != 4 or ragged != [2]:
        raise ValueError(f"{name}: expected shape (B, H, L, D) with L different in each row, got {t.shape}")
    if t.lengths() is not None:
        raise ValueError(f"{name}: expected rows without holes between them; {name}.contiguous() closes them")


def _same_lengths(key: Tensor, value: Tensor) -> bool:
    """Nested tensors made one by one have lengths of different names, which may be equal all the same."""
    if key.shape[2] == value.shape[2]:
        return True
    return not torch.compiler.is_compiling() and torch.equal(key.offsets(), value.offsets())


def _cut_alike(packed: Packed) -> bool:
    if packed.cu_seqlens_k is packed.cu_seqlens_q:
        return True
    return not torch.compiler.is_compiling() and torch.equal(packed.cu_seqlens_q, packed.cu_seqlens_k)
