"""Peers of sparse patterns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_peers import on_tensors, ours
from .cases import Case
from .contender import Contender
from .patterns import BigBird, Table

__all__ = ["CONTENDERS"]


def gathered_blocks(case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """BigBird in plain torch: the blocks that a query block sees are gathered, each an SDPA of its own."""
    s, pattern = case.shape, case.mask
    if not isinstance(pattern, BigBird) or s.B != 1 or s.Hkv != s.H or s.Lq != s.Lk or s.Dv != s.D:
        raise ValueError(f"{case.name}: not a case for gathered blocks")
    rows = pattern.blocks(s.Lk)
    if len({len(row) for row in rows[1:-1]}) != 1:
        raise ValueError(f"{case.name}: expected the same number of blocks in every row")
    n, size = len(rows), pattern.block
    seen = torch.tensor(rows[1:-1])

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def gather(x: Tensor) -> Tensor:
            blocks = x.view(s.H, n, size, s.D).index_select(1, seen.flatten())
            return blocks.view(s.H, n - 2, -1, s.D)

        ends = torch.cat([q[:, :, :size], q[:, :, -size:]], dim=2)
        ends = F.scaled_dot_product_attention(ends, k, v)
        middle = q[:, :, size:-size].view(s.H, n - 2, size, s.D)
        middle = F.scaled_dot_product_attention(middle, gather(k), gather(v))
        middle = middle.view(1, s.H, -1, s.D)
        return torch.cat([ends[:, :, :size], middle, ends[:, :, size:]], dim=2)

    return forward


def as_band(case: Case) -> Callable[..., Tensor]:
    if not isinstance(case.mask, Table):
        raise ValueError(f"{case.name}: expected a table, got {case.mask}")
    return ours(replace(case, mask=case.mask.mask))


CONTENDERS = {
    "gather": Contender("gathered blocks + SDPA", on_tensors(gathered_blocks)),
    "band": Contender("ours as a band", on_tensors(as_band)),
}
