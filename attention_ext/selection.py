"""Blocks of keys, chosen by the queries themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._ops.select_blocks import Call, select_blocks_op
from .masks import Causal, Mask, Selected
from .masks._band import check_positive


def select_blocks(
    query: Tensor,
    key: Tensor,
    block_size: int,
    top_k: int,
    *,
    causal: bool = True,
    share_heads: bool = False,
    initial_blocks: int = 0,
    local_blocks: int = 1,
    query_block_size: int = 1,
    key_keep: Tensor | None = None,
    compressed: tuple[int, int, int] | None = None,
    scale: float | None = None,
) -> Mask:
    """Chooses `top_k` blocks of keys for each query, as a mask for `attention`.

    The score of a block is the product of the query and the mean of the block's keys (MoBA, Lu et al. 2025,
    arXiv:2502.13189). The block that the query stands in is always chosen, and counts; blocks behind it are
    never scored, so that a query chooses the same whether it comes alone, as the last one, or in a whole
    sequence. Ties go to the first block, and a score of NaN counts as -inf.

    Args:
        query: (B, Hq, Lq, D), (Hq, Lq, D) or (Lq, D); float32, float64, bfloat16 or float16. Query i stands
            at i + Lk - Lq.
        key: (B, Hkv, Lk, D), (Hkv, Lk, D) or (Lk, D), of the same dtype; Hkv divides Hq, and query head h
            goes with key head h // (Hq / Hkv).
        block_size: keys of a block; the last block may be shorter.
        top_k: blocks chosen for a query, the fixed ones included; fewer where there are fewer.
        causal: whether what comes after a query is hidden: blocks, and keys of its own block.
        share_heads: one choice for all query heads of a key head, by the sum of their scores.
        initial_blocks: so many blocks at the beginning are always chosen.
        local_blocks: so many blocks up to the query's own are always chosen; at least 1 where causal.
        query_block_size: so many neighbouring queries choose together, by their mean; they stand where the
            first of them does. 1 where causal.
        key_keep: bool (B, Lk), True = a key that counts; a block without any is chosen only if it is fixed.
        compressed: (length, stride, Lk) where key holds compressed keys, of which key j stands for the
            positions j * stride .. j * stride + length - 1 out of Lk. A block's score is then the sum of the
            query's attention probabilities over the keys whose positions it sees, each counted once for every
            stride of positions that it shares with the block (NSA, Yuan et al. 2025, arXiv:2502.11089,
            equation 9). The stride divides the length and block_size; key_keep is for the compressed keys.
        scale: of the scores behind those probabilities; None = D**-0.5.

    Returns:
        A mask for (B, Hq, Lq, Lk): a :class:`masks.Selected` with indices of (B, Hq, Lq, top_k), or (B, Hkv,
        Lq, top_k) with share_heads; where causal, the same & :class:`masks.Causal`. Nothing has the size
        Lq x Lk. A choice is an integer, a constant for every derivative: as in the papers, no gradient
        reaches query or key through it.

    Raises:
        TypeError: no tensor or number where one is due, or another dtype.
        ValueError: shapes, devices or numbers that don't fit.
    """
    _checks.check_tensors(query, key, key)
    B, Hq, _, Lk = _checks.check_qkv(query, key, key)
    missing = (None,) * (4 - query.dim())
    query, key = query[missing], key[missing]
    call = Call(
        query,
        key,
        None if key_keep is None else _checked_keep(key_keep, key, B, Lk),
        check_positive("block_size", block_size),
        check_positive("query_block_size", query_block_size),
        check_positive("top_k", top_k),
        _checked_count("initial_blocks", initial_blocks, 0, top_k),
        _checked_count("local_blocks", local_blocks, int(causal), top_k - initial_blocks),
        bool(causal),
        bool(share_heads),
        [] if compressed is None else _checked_compression(compressed, block_size, Lk),
        _checked_scale(scale, query),
    )
    if query_block_size != 1 and (causal or compressed is not None):
        other = "causal" if causal else "compressed keys"
        raise ValueError(f"query_block_size: expected 1 with {other}, got {query_block_size}")
    group = Hq // key.shape[1] if share_heads and key.shape[1] else 1
    selected = Selected(select_blocks_op(call), block_size, query_block_size, group)
    return selected & Causal() if causal else selected


def _checked_keep(keep: Any, key: Tensor, B: int, Lk: int) -> Tensor:
    _checks.check_tensor("key_keep", keep)
    _checks.check_device("key_keep", keep, key)
    if keep.dtype != torch.bool:
        raise TypeError(f"key_keep: expected torch.bool (True = a key that counts), got {keep.dtype}")
    if keep.dim() != 2 or keep.shape[0] != B or keep.shape[1] != Lk:
        raise ValueError(f"key_keep: expected shape (B, Lk) = ({B}, {Lk}), got {tuple(keep.shape)}")
    return keep.contiguous()


def _checked_count(name: str, n: Any, least: int, most: int) -> int:
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"{name}: expected an int, got {type(n).__name__}")
    if not least <= n <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {n}")
    return n


def _checked_compression(compressed: Any, block_size: int, Lk: int) -> list[int]:
    if not isinstance(compressed, (tuple, list)) or len(compressed) != 3:
        raise TypeError(f"compressed: expected (length, stride, Lk), got {compressed!r}")
    length, stride, positions = compressed
    check_positive("compressed[0]", length)
    check_positive("compressed[1]", stride)
    if length % stride or block_size % stride:
        raise ValueError(
            f"compressed: expected a stride that divides the length {length} and block_size {block_size}, "
            f"got {stride}"
        )
    keys = (positions - length) // stride + 1 if positions >= length else 0
    if keys != Lk:
        raise ValueError(f"key: expected {keys} compressed keys for {positions} positions, got {Lk}")
    return [length, stride, positions]


def _checked_scale(scale: Any, query: Tensor) -> float:
    if scale is None:
        return query.shape[-1] ** -0.5
    _checks.check_scale(scale)
    return float(scale)
