"""Masks about which positions or documents query and key stand in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._band import check_alignment
from ._base import Mask
from ._lowering import DOCUMENTS, GLOBAL, Program, host_integers
from ._tensor import INTEGERS, check_integers, check_tensor, smallest_of


class Global(Mask):
    """Tokens that see all and are seen by all: i' >= 0, and i' or j is one of them.

    As in Longformer (Beltagy et al. 2020, arXiv:2004.05150). tokens: how many of the first positions, or a
    sequence of positions. alignment: as in Causal. Raises TypeError or ValueError for anything else, negative
    numbers too.
    """

    _plain_fields = ("tokens", "alignment")
    tokens: int | tuple[int, ...]
    alignment: str

    def __init__(self, tokens: int | Sequence[int], alignment: str = "bottom_right") -> None:
        check_alignment(alignment)
        if isinstance(tokens, int) and not isinstance(tokens, bool):
            if tokens < 0:
                raise ValueError(f"tokens: expected a number or positions of at least 0, got {tokens}")
            self._set(tokens=tokens, alignment=alignment)
            return
        values = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        if not isinstance(values, Sequence) or not all(type(n) is int for n in values):
            got = type(tokens).__name__
            raise TypeError(f"tokens: expected an int or a sequence of ints, got {got}")
        if any(n < 0 for n in values):
            raise ValueError(f"tokens: expected a number or positions of at least 0, got {min(values)}")
        self._set(tokens=tuple(sorted(set(values))), alignment=alignment)

    def __repr__(self) -> str:
        tokens = self.tokens if isinstance(self.tokens, int) else list(self.tokens)
        return f"Global({tokens}{_shown_alignment(self.alignment)})"

    def _is_global(self, position: Tensor) -> Tensor:
        if isinstance(self.tokens, int):
            return (position >= 0) & (position < self.tokens)
        tokens = torch.tensor(self.tokens, dtype=torch.int64, device=position.device)
        return (position[..., None] == tokens).any(-1)

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        position = i + (Lk - Lq if self.alignment == "bottom_right" else 0)
        return ((position >= 0) & (self._is_global(position) | self._is_global(j)))[None, None]

    def _emit(self, program: Program) -> None:
        at_end = self.alignment == "bottom_right"
        if isinstance(self.tokens, int):
            program.add(GLOBAL, self.tokens, None, at_end)
        else:
            program.add(GLOBAL, 0, host_integers(self.tokens), at_end)


class Documents(Mask):
    """Pairs in the same document: ids[i'] == ids[j], none of them negative, and i' >= 0.

    ids: integer tensor (Lk,) or (B, Lk), the document of each position; a negative id is padding, which
    neither sees nor is seen. query_ids: (Lq,) or (B, Lq), the document of each query where queries are not
    positions of the same sequence; query i then has query_ids[i]. alignment: as in Causal, without query_ids.
    Raises TypeError for another dtype, ValueError for another shape.
    """

    _tensor_fields = ("ids", "query_ids")
    _plain_fields = ("alignment",)
    ids: Tensor
    query_ids: Tensor | None
    alignment: str

    def __init__(self, ids: Tensor, query_ids: Tensor | None = None, alignment: str = "bottom_right") -> None:
        _check_ids("ids", ids)
        if query_ids is not None:
            _check_ids("query_ids", query_ids)
        self._set(ids=ids, query_ids=query_ids, alignment=check_alignment(alignment))

    @classmethod
    def from_cu_seqlens(
        cls,
        cu_seqlens: Tensor | Sequence[int],
        cu_seqlens_k: Tensor | Sequence[int] | None = None,
        alignment: str = "bottom_right",
    ) -> Documents:
        """Documents one after the other: number n reaches from cu_seqlens[n] to cu_seqlens[n + 1].

        cu_seqlens: integers, 0 first, none smaller than the one before. cu_seqlens_k: the same for keys,
        where they are cut differently; cu_seqlens is then about queries. Raises ValueError for anything else.
        """
        ids = _ids_of("cu_seqlens", cu_seqlens)
        if cu_seqlens_k is None:
            return cls(ids, alignment=alignment)
        if len(cu_seqlens_k) != len(cu_seqlens):
            raise ValueError(
                f"cu_seqlens_k: expected the size of cu_seqlens, {len(cu_seqlens)}, got {len(cu_seqlens_k)}"
            )
        return cls(_ids_of("cu_seqlens_k", cu_seqlens_k), ids, alignment)

    def _own_sizes(self) -> tuple[int, int] | None:
        queries = self.ids if self.query_ids is None else self.query_ids
        return queries.shape[-1], self.ids.shape[-1]

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        ids = torch.atleast_2d(self.ids)
        if ids.shape[1] != Lk:
            raise ValueError(
                f"mask: expected Documents of {Lk} keys, got ids of shape {tuple(self.ids.shape)}"
            )
        if self.query_ids is None:
            position = i[:, 0] + (Lk - Lq if self.alignment == "bottom_right" else 0)
            queries = ids[:, position.clamp(0, max(Lk - 1, 0))] if Lk else ids.new_zeros(ids.shape[0], len(i))
            queries = torch.where((position >= 0) & (position < Lk), queries, -1)
        else:
            queries = torch.atleast_2d(self.query_ids)
            if queries.shape[1] != Lq:
                shape = tuple(self.query_ids.shape)
                raise ValueError(f"mask: expected Documents of {Lq} queries, got query_ids of shape {shape}")
            queries = queries[:, i[:, 0]]
        queries = queries[:, None, :, None]
        return (queries == ids[:, None, None, :]) & (queries >= 0)

    def _emit(self, program: Program) -> None:
        at_end = self.alignment == "bottom_right"
        queries = None if self.query_ids is None else torch.atleast_2d(self.query_ids).to(torch.int64)
        program.add(DOCUMENTS, torch.atleast_2d(self.ids).to(torch.int64), queries, at_end)


def _shown_alignment(alignment: str) -> str:
    return "" if alignment == "bottom_right" else f", alignment={alignment!r}"


def _check_ids(name: str, ids: Tensor) -> None:
    check_tensor(name, ids, "an integer tensor", INTEGERS)
    if ids.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape (L,) or (B, L), got {tuple(ids.shape)}")


def check_cu_seqlens(name: str, cu_seqlens: Tensor | Sequence[int]) -> Tensor:
    """The starts of packed sequences, and their end, as int64 (sequences + 1,)."""
    starts = check_integers(name, cu_seqlens)
    expected = f"{name}: expected integers of shape (sequences + 1,)"
    if starts.ndim != 1 or starts.shape[0] == 0:
        raise ValueError(f"{expected}, got shape {tuple(starts.shape)}")
    first, step = smallest_of(starts[:1].abs()), smallest_of(starts.diff())
    if first:
        raise ValueError(f"{expected} that start at 0, got {int(starts[0])}")
    if step is not None and step < 0:
        at = int((starts.diff() < 0).nonzero()[0])
        raise ValueError(f"{expected} that don't decrease, got {int(starts[at])}, {int(starts[at + 1])}")
    return starts.to(torch.int64)


def _ids_of(name: str, cu_seqlens: Tensor | Sequence[int]) -> Tensor:
    lengths = check_cu_seqlens(name, cu_seqlens).diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
