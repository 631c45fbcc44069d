"""What a built block table says: its density, and its picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._lowering import TILE


def table_density(block_table: list[Tensor], Lq: int, Lk: int) -> float:
    """The share of allowed pairs."""
    _, row_start, entries, _, _, maps = block_table
    lists = row_start.shape[0] * row_start.shape[1]
    counts = row_start.diff(dim=-1).flatten()
    # Heads may share their lists: entries are taken list by list.
    first = row_start[..., :-1].flatten() - (counts.cumsum(0) - counts)
    chosen = entries[
        torch.repeat_interleave(first, counts) + torch.arange(int(counts.sum()), device=counts.device)
    ]
    tiles, index = chosen[:, 0].long(), chosen[:, 1].long()
    rows = torch.arange(counts.shape[0], device=counts.device) % max(1, row_start.shape[2] - 1)
    queries = torch.repeat_interleave((Lq - rows * TILE).clamp(max=TILE), counts)
    pairs = queries * (Lk - tiles * TILE).clamp(max=TILE)
    if len(maps):
        bits = count_bits(maps)
        pairs = torch.where(index < 0, pairs, bits.sum(1)[index.clamp(min=0)])
        keys = (Lk - tiles * TILE).clamp(max=TILE)
        pairs = torch.where(index < -1, bits.flatten()[(-2 - index).clamp(min=0)] * keys, pairs)
    return float(pairs.sum()) / (lists * Lq * Lk) if lists and Lq and Lk else 0.0


def count_bits(words: Tensor) -> Tensor:
    """The bits set in each int64 word."""
    count = torch.zeros_like(words)
    for shift in range(64):
        count += (words >> shift) & 1
    return count


def plot_table(block_table: list[Tensor], Lq: int, Lk: int, b: int, h: int, axes: Any, title: str) -> Any:
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colors = {"skipped": "#f0f0f0", "partial": "#9ecae1", "full": "#08519c"}
    if axes is None:
        axes = pyplot.subplots()[1]
    axes.imshow(
        tile_kinds(block_table, b, h),
        cmap=ListedColormap(list(colors.values())),
        vmin=0,
        vmax=2,
        extent=(0, Lk, Lq, 0),
        interpolation="nearest",
    )
    axes.set(xlabel="key", ylabel="query", title=title)
    handles = [Patch(facecolor=color, edgecolor="gray", label=kind) for kind, color in colors.items()]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1))
    return axes


def tile_kinds(block_table: list[Tensor], b: int = 0, h: int = 0) -> Tensor:
    """(query tiles, key tiles) of one row of the batch and one head: 0 skipped, 1 partial, 2 full."""
    _, row_start, entries, column_start, _, _ = block_table
    at = []
    for name, n, own in (("b", b, row_start.shape[0]), ("h", h, row_start.shape[1])):
        if n < 0 or (n >= own and own != 1):
            raise ValueError(f"{name}: expected 0 to {own - 1}, got {n}")
        at.append(n if own != 1 else 0)
    start = row_start[tuple(at)]
    chosen = entries[int(start[0]) : int(start[-1])].long()
    rows = torch.repeat_interleave(torch.arange(len(start) - 1, device=start.device), start.diff())
    kinds = start.new_zeros(len(start) - 1, column_start.shape[2] - 1, dtype=torch.int64)
    kinds[rows, chosen[:, 0]] = torch.where(chosen[:, 1] == -1, 2, 1)
    return kinds
