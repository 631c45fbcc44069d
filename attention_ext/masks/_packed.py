"""Masks inside packed sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._band import SlidingWindow
from ._base import Mask
from ._lowering import PACKED, Program
from ._positions import check_cu_seqlens


class Packed(Mask):
    """A mask inside each of several sequences that lie one after the other, with nothing seen across.

    mask: what is allowed inside a sequence, None = all; it sees the sequence's own lengths and positions, and
    sequence s as row s of its batch. cu_seqlens_q: (sequences + 1,), sequence s has the queries from
    cu_seqlens_q[s] to cu_seqlens_q[s + 1]. cu_seqlens_k: the same for keys, None = as queries. Raises
    TypeError or ValueError for numbers that don't start at 0, decrease, or don't fit each other.
    """

    _tensor_fields = ("mask", "cu_seqlens_q", "cu_seqlens_k")
    mask: Mask
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor

    def __init__(
        self,
        mask: Mask | None,
        cu_seqlens_q: Tensor | Sequence[int],
        cu_seqlens_k: Tensor | Sequence[int] | None = None,
    ) -> None:
        mask = SlidingWindow(None, None) if mask is None else mask
        if not isinstance(mask, Mask):
            raise TypeError(f"mask: expected one of attention_ext.masks or None, got {type(mask).__name__}")
        starts_q = check_cu_seqlens("cu_seqlens_q", cu_seqlens_q)
        starts_k = starts_q
        if cu_seqlens_k is not None:
            starts_k = check_cu_seqlens("cu_seqlens_k", cu_seqlens_k)
        if starts_k.shape != starts_q.shape:
            raise ValueError(
                "cu_seqlens_k: expected the size of cu_seqlens_q, "
                f"{starts_q.shape[0]}, got {starts_k.shape[0]}"
            )
        self._set(mask=mask, cu_seqlens_q=starts_q, cu_seqlens_k=starts_k)

    def _tensors(self) -> list[Tensor]:
        return [*self.mask._tensors(), self.cu_seqlens_q, self.cu_seqlens_k]

    def _key(self) -> tuple:
        return (self.mask, *super()._key())

    def __repr__(self) -> str:
        return f"Packed({self.mask!r}, {self.cu_seqlens_q.shape[0] - 1} sequences)"

    def _own_sizes(self) -> tuple[int, int] | None:
        return int(self.cu_seqlens_q[-1]), int(self.cu_seqlens_k[-1])

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        q, k = self.cu_seqlens_q.tolist(), self.cu_seqlens_k.tolist()
        for name, end, length in (("cu_seqlens_q", q[-1], Lq), ("cu_seqlens_k", k[-1], Lk)):
            if end != length:
                raise ValueError(f"{name}: expected a last number of {length}, the length, got {end}")
        rows = []
        for s in range(len(q) - 1):
            lengths = q[s + 1] - q[s], k[s + 1] - k[s]
            inside = self.mask.dense(*lengths)
            inside = inside[min(s, inside.shape[0] - 1)][None].expand(1, -1, *lengths)
            rows.append(torch.nn.functional.pad(inside, (k[s], Lk - k[s + 1])))
        heads = max((row.shape[1] for row in rows), default=1)
        rows = [row.expand(1, heads, -1, -1) for row in rows]
        allowed = torch.cat([torch.ones(1, heads, 0, Lk, dtype=torch.bool, device=i.device), *rows], dim=2)
        return allowed[:, :, i[:, 0]]

    def _emit(self, program: Program) -> None:
        self.mask._emit(program)
        program.add(PACKED, self.cu_seqlens_q, self.cu_seqlens_k)
