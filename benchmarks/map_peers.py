"""Attention maps: ours, and the formula of plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import attention_ext as ax

from .attention_peers import dense_mask, mask_of, on_tensors
from .cases import Case
from .contender import Contender

__all__ = ["CONTENDERS"]

Forward = Callable[..., Tensor]
BINS = 64


def results(binned: Tensor, column_sums: Tensor, entropy: Tensor) -> Tensor:
    """All in one tensor, each of a size near 1."""
    Lk = column_sums.shape[-1]
    return torch.cat([part.flatten() for part in (binned * Lk, column_sums, entropy)])


def ours(case: Case) -> Forward:
    mask = mask_of(case)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = ax.attention_map(q, k, mask, bins=BINS)
        return results(found.binned, found.column_sums, found.entropy)

    return forward


def rows_at_a_time(rows: int | None) -> Callable[[Case], Forward]:
    """The weights of so many queries after each other; None makes those of all at once."""

    def make(case: Case) -> Forward:
        s = case.shape
        step = rows or s.Lq
        tile, width = s.Lq // BINS, s.Lk // BINS
        if s.Hkv != s.H or s.Lq % BINS or s.Lk % BINS or step % tile:
            raise ValueError(f"{case.name}: tiles and runs of rows have to divide the lengths")
        hidden = None if case.mask is None else ~dense_mask(case.mask, s.Lq, s.Lk)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, keys = q * s.D**-0.5, k.transpose(-1, -2)
            binned, entropy, column_sums = [], [], 0
            for i in range(0, s.Lq, step):
                scores = q[:, :, i : i + step] @ keys
                if hidden is not None:
                    scores = scores.masked_fill_(hidden[i : i + step], -torch.inf)
                weights = torch.softmax(scores, -1)
                binned.append(weights.unflatten(-1, (BINS, width)).unflatten(2, (-1, tile)).mean((3, 5)))
                entropy.append(-torch.special.xlogy(weights, weights).sum(-1))
                column_sums = column_sums + weights.sum(-2)
            return results(torch.cat(binned, 2), column_sums, torch.cat(entropy, 2))

        return forward

    return make


CONTENDERS = {
    "ours": Contender("attention_ext", on_tensors(ours)),
    "softmax": Contender("torch, all weights", on_tensors(rows_at_a_time(None))),
    "rows_128": Contender("torch, 128 queries at a time", on_tensors(rows_at_a_time(128))),
}
