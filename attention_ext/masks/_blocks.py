"""Masks given block by block, and as a stored table of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _function
from ._band import check_positive
from ._base import Mask
from ._lowering import BLOCKS, NO_MASK, TABLE, LoweredMask, Program, check_heads, dense_table, stored_table
from ._tensor import check_tensor


class Blocks(Mask):
    """Whole blocks of pairs: query i sees key j iff block_map[..., i // block_size, j // block_size].

    block_map: bool (..., nq, nk), at most four dimensions, the leading ones broadcastable to (B, Hq);
    nq = ceil(Lq / block_size), nk = ceil(Lk / block_size). block_size: a positive integer, or two, of queries
    and of keys. Raises TypeError or ValueError for anything else.
    """

    _tensor_fields = ("block_map",)
    _plain_fields = ("block_size",)
    block_map: Tensor
    block_size: tuple[int, int]

    def __init__(self, block_map: Tensor, block_size: int | Sequence[int]) -> None:
        check_tensor("block_map", block_map, "a bool tensor (True = attend)", (torch.bool,))
        if not 2 <= block_map.ndim <= 4:
            raise ValueError(f"block_map: expected shape (..., nq, nk), got {tuple(block_map.shape)}")
        sizes = tuple(block_size) if isinstance(block_size, Sequence) else (block_size, block_size)
        if len(sizes) != 2:
            raise ValueError(f"block_size: expected one size or two, of queries and keys, got {sizes}")
        self._set(block_map=block_map, block_size=tuple(check_positive("block_size", n) for n in sizes))

    @classmethod
    def from_flex(cls, block_mask: Any) -> Tiles:
        """The same pairs as a `torch.nn.attention.flex_attention.BlockMask`.

        In its partial blocks its mask_mod is evaluated, once, here, on the BlockMask's device; the result
        is on the CPU. The sizes are the mask's own. Raises
        TypeError for anything else.
        """
        return Tiles(*_function.tiles_of_flex(block_mask))

    def _four(self) -> Tensor:
        return self.block_map[(None,) * (4 - self.block_map.ndim)]

    def _own_sizes(self) -> tuple[int, int] | None:
        (nq, nk), (query_block, key_block) = self.block_map.shape[-2:], self.block_size
        return nq * query_block, nk * key_block

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        query_block, key_block = self.block_size
        expected = (-(-Lq // query_block), -(-Lk // key_block))
        if tuple(self.block_map.shape[-2:]) != expected:
            raise ValueError(
                f"mask: expected Blocks of {expected[0]} x {expected[1]} blocks, "
                f"got a block map of shape {tuple(self.block_map.shape)}"
            )
        return self._four()[:, :, i[:, 0] // query_block][..., j[0] // key_block]

    def _emit(self, program: Program) -> None:
        program.add(BLOCKS, self._four(), *self.block_size)


class Tiles(Mask):
    """A mask as the kernels' table of 64 x 64 tiles, for Lq queries and Lk keys alone: what `from_function`
    and `Blocks.from_flex` make. The five arrays are explained in csrc/README.md.
    """

    _tensor_fields = ("row_start", "row_entries", "column_start", "column_entries", "maps")
    _plain_fields = ("Lq", "Lk")
    row_start: Tensor
    row_entries: Tensor
    column_start: Tensor
    column_entries: Tensor
    maps: Tensor
    Lq: int
    Lk: int

    def __init__(
        self,
        row_start: Tensor,
        row_entries: Tensor,
        column_start: Tensor,
        column_entries: Tensor,
        maps: Tensor,
        Lq: int,
        Lk: int,
    ) -> None:
        self._set(
            row_start=row_start,
            row_entries=row_entries,
            column_start=column_start,
            column_entries=column_entries,
            maps=maps,
            Lq=Lq,
            Lk=Lk,
        )

    def __repr__(self) -> str:
        B, H = self.row_start.shape[:2]
        return f"Tiles(B={B}, H={H}, Lq={self.Lq}, Lk={self.Lk}, {len(self.row_entries)} of 64 x 64)"

    def _own_sizes(self) -> tuple[int, int] | None:
        return self.Lq, self.Lk

    def _check_sizes(self, Lq: int, Lk: int) -> None:
        if (Lq, Lk) != (self.Lq, self.Lk):
            raise ValueError(
                f"mask: expected {self.Lq} queries and {self.Lk} keys for {self!r}, got {Lq} and {Lk}"
            )

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        self._check_sizes(Lq, Lk)
        table = stored_table(self._tensors(), Lq, Lk)
        B, H = self.row_start.shape[:2]
        return dense_table(table, (B, H, Lq, Lk), i.device)[:, :, i[:, 0]]

    def _lower(self, B: int, Hq: int, Lq: int, Lk: int) -> LoweredMask:
        self._check_sizes(Lq, Lk)
        table = stored_table(self._tensors(), Lq, Lk)
        check_heads(table, B, Hq)
        return NO_MASK._replace(block_table=table)

    def _emit(self, program: Program) -> None:
        program.add(TABLE, *self._tensors(), self.Lq, self.Lk)


def from_function(fn: Any, B: int | None, H: int | None, Lq: int, Lk: int) -> Tiles:
    """The pairs for which fn(b, h, q, k) is true: a `mask_mod` of torch's FlexAttention.

    fn is called on integer tensors without dimensions, under torch.vmap over q and k; b and h are
    0 .. B-1 and 0 .. H-1, None as 1: the mask is the same in all rows of the batch, or heads. It is evaluated
    here, for all pairs, 64 queries at a time, on torch's default device; what is kept is the 64 x 64 tiles
    with an allowed pair, on the CPU. Raises TypeError where fn gives no bool, ValueError for negative sizes.
    """
    return Tiles(*_function.tiles_of_function(fn, B, H, Lq, Lk))
