"""Masks of learned sparsity: blocks of keys chosen for each query, and compressed keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ._band import check_positive
from ._base import Mask
from ._lowering import COMPRESSED, SELECTED, Program
from ._tensor import check_tensor


class Selected(Mask):
    """Chosen blocks: query i sees key j iff j // block_size is among indices[b, h, i // query_block_size].

    What `attention_ext.select_blocks` returns; it takes 4 bytes for each chosen block.

    indices: int32 (..., nq, n), at most four dimensions, the leading ones broadcastable to (B, H);
    nq = ceil(Lq / query_block_size). Below 0 is no block. They index plainly, by (i, j), and must be below
    ceil(Lk / block_size); where a GPU makes the kernels' table, one that is not is no block. block_size,
    query_block_size, group: positive integers; head h of the queries sees what head h // group of the indices
    says. Raises TypeError or ValueError for anything else.
    """

    _tensor_fields = ("indices",)
    _plain_fields = ("block_size", "query_block_size", "group")
    indices: Tensor
    block_size: int
    query_block_size: int
    group: int

    def __init__(self, indices: Tensor, block_size: int, query_block_size: int = 1, group: int = 1) -> None:
        check_tensor("indices", indices, "an int32 tensor", (torch.int32,))
        if not 2 <= indices.ndim <= 4:
            raise ValueError(f"indices: expected shape (..., nq, n), got {tuple(indices.shape)}")
        self._set(
            indices=indices,
            block_size=check_positive("block_size", block_size),
            query_block_size=check_positive("query_block_size", query_block_size),
            group=check_positive("group", group),
        )

    def _four(self) -> Tensor:
        return self.indices[(None,) * (4 - self.indices.ndim)]

    def _own_sizes(self) -> tuple[int, int | None] | None:
        return self.indices.shape[-2] * self.query_block_size, None

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        rows, blocks = -(-Lq // self.query_block_size), -(-Lk // self.block_size)
        if self.indices.shape[-2] != rows:
            raise ValueError(
                f"mask: expected Selected for {rows} rows of queries, got indices of shape "
                f"{tuple(self.indices.shape)}"
            )
        chosen = self._four()[:, :, i[:, 0] // self.query_block_size].long()
        largest = _largest(chosen)
        if largest is not None and largest >= blocks:
            raise ValueError(f"mask: expected selected blocks below {blocks}, got {largest}")
        # What is below 0 goes to one more block, which is cut off.
        chosen = torch.where(chosen < 0, blocks, chosen)
        seen = torch.zeros(*chosen.shape[:3], blocks + 1, dtype=torch.bool, device=chosen.device)
        seen = seen.scatter(-1, chosen, True)[..., j[0] // self.block_size]
        return seen.repeat_interleave(self.group, dim=1)

    def _emit(self, program: Program) -> None:
        program.add(SELECTED, self._four(), self.group, self.query_block_size, self.block_size)


class Compressed(Mask):
    """Keys that each stand for a stretch of positions, as in native sparse attention (arXiv:2502.11089).

    Key j stands for the positions j * stride .. j * stride + length - 1 out of `positions`, and is seen from
    the last of them on; query i stands at i + positions - Lq. Lk must be the number of whole stretches,
    (positions - length) // stride + 1, or 0.

    length, stride: positive integers; positions: an integer of at least 0. Raises TypeError or ValueError for
    anything else.
    """

    _plain_fields = ("length", "stride", "positions")
    length: int
    stride: int
    positions: int

    def __init__(self, length: int, stride: int, positions: int) -> None:
        if positions != 0:
            check_positive("positions", positions)
        self._set(
            length=check_positive("length", length),
            stride=check_positive("stride", stride),
            positions=positions,
        )

    @property
    def keys(self) -> int:
        """The number of compressed keys."""
        return 0 if self.positions < self.length else (self.positions - self.length) // self.stride + 1

    def _own_sizes(self) -> tuple[int, int] | None:
        return self.positions, self.keys

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        if Lk != self.keys:
            raise ValueError(f"mask: expected {self.keys} compressed keys for {self!r}, got {Lk}")
        return (j * self.stride + self.length - 1 <= i + self.positions - Lq)[None, None]

    def _emit(self, program: Program) -> None:
        program.add(COMPRESSED, self.length, self.stride, self.positions)


def _largest(indices: Tensor) -> int | None:
    if indices.numel() == 0 or torch.compiler.is_compiling():
        return None
    try:
        return int(indices.max())
    except RuntimeError:  # a fake or vmapped tensor has no value to look at
        return None
