"""What goes into attention_map beside the arguments of attention, and what comes out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._ops.transforms import is_fake


class AttentionMap(NamedTuple):
    """What `attention_map` finds, in float32 (float64 for float64)."""

    weights: Tensor | None  # (B, Hq, rows, Lk): the weights of the chosen queries
    binned: Tensor | None  # (B, Hq, query bins, key bins): the mean weight of each tile
    column_sums: Tensor  # (B, Hq, Lk): what each key gets from all queries
    entropy: Tensor  # (B, Hq, Lq): of each query's weights, in nats
    lse: Tensor  # (B, Hq, Lq): the logarithm of the softmax's denominator


def chosen_rows(rows: Any, Lq: int, device: torch.device) -> Tensor:
    """rows as int64 from 0 to Lq - 1."""
    if isinstance(rows, str):
        if rows != "all":
            raise ValueError(f'rows: expected integers, "all" or None, got {rows!r}')
        return torch.arange(Lq, device=device)
    if isinstance(rows, Tensor):
        if rows.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise TypeError(f"rows: expected integers, got {rows.dtype}")
        if rows.dim() != 1:
            raise ValueError(f"rows: expected one dimension, got shape {tuple(rows.shape)}")
        if rows.numel() and not torch.compiler.is_compiling() and not is_fake(rows):
            low, high = (int(x) for x in rows.aminmax())
            _check_rows(low, high, Lq)
        rows = rows.to(device, torch.int64)
    else:
        try:
            rows = [*rows]
        except TypeError:
            raise TypeError(f"rows: expected a sequence of integers, got {type(rows).__name__}") from None
        for row in rows:
            if not isinstance(row, int) or isinstance(row, bool):
                raise TypeError(f"rows: expected integers, got {type(row).__name__}")
            _check_rows(row, row, Lq)
        rows = torch.tensor(rows, dtype=torch.int64, device=device)
    return torch.where(rows < 0, rows + Lq, rows)


def _check_rows(low: int, high: int, Lq: int) -> None:
    if low < -Lq or high >= Lq:
        raise ValueError(f"rows: expected -{Lq} to {Lq - 1}, got {low if low < -Lq else high}")


def number_of_bins(bins: Any, Lq: int, Lk: int) -> list[int]:
    """bins along queries and keys, at most one for each of them."""
    pair = tuple(bins) if isinstance(bins, (tuple, list)) else (bins, bins)
    if len(pair) != 2:
        raise ValueError(f"bins: expected one integer or two, got {len(pair)}")
    for n in pair:
        if not isinstance(n, (int, torch.SymInt)) or isinstance(n, bool):
            raise TypeError(f"bins: expected an integer or two, got {type(n).__name__}")
        if n < 1:
            raise ValueError(f"bins: expected at least 1, got {n}")
    return [min(n, length) for n, length in zip(pair, (Lq, Lk), strict=True)]
