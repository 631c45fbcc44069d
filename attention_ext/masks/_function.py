"""Functions of (b, h, q, k), as torch's FlexAttention has them, evaluated into tables of tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._lowering import TILE

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# row_start, row_entries, column_start, column_entries, maps, Lq, Lk
TileArrays = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int]


def tiles_of_function(fn: MaskMod, B: int | None, H: int | None, Lq: int, Lk: int) -> TileArrays:
    sizes = {"B": 1 if B is None else B, "H": 1 if H is None else H, "Lq": Lq, "Lk": Lk}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name}: expected an integer, got {type(size).__name__}")
        if size < 0:
            raise ValueError(f"{name}: expected a size of at least 0, got {size}")
    keys = torch.arange(Lk)  # on torch's default device, as what fn holds may be

    def rows(b: int, h: int, queries: Tensor) -> Tensor:
        return _evaluate(fn, b, h, queries.to(keys.device), keys).cpu()

    return _tiles(rows, *sizes.values())


def tiles_of_flex(block_mask: Any) -> TileArrays:
    from torch.nn.attention.flex_attention import BlockMask

    if not isinstance(block_mask, BlockMask):
        raise TypeError(f"block_mask: expected a BlockMask, got {type(block_mask).__name__}")
    Lq, Lk = block_mask.seq_lengths
    query_block, key_block = block_mask.BLOCK_SIZE
    shape = (*block_mask.kv_num_blocks.shape, -(-Lk // key_block))
    partial = _block_map(block_mask.kv_num_blocks, block_mask.kv_indices, shape)
    full = torch.zeros_like(partial)
    if block_mask.full_kv_num_blocks is not None:
        full = _block_map(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, shape)
    device = block_mask.kv_indices.device
    key_blocks = torch.arange(Lk, device="cpu") // key_block

    def rows(b: int, h: int, queries: Tensor) -> Tensor:
        blocks = queries // query_block
        allowed = full[b, h][blocks][:, key_blocks]
        asked = partial[b, h][blocks][:, key_blocks]
        keys = asked.any(0).nonzero()[:, 0]
        if len(keys):
            said = _evaluate(block_mask.mask_mod, b, h, queries.to(device), keys.to(device))
            allowed[:, keys] |= asked[:, keys] & said.cpu()
        return allowed

    return _tiles(rows, *shape[:2], Lq, Lk)


def _block_map(counts: Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """bool (B, H, nq, nk) of lists of key blocks: the first counts[b, h, q] of indices[b, h, q]."""
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    found = indices.new_zeros(shape, dtype=torch.int64)
    return (found.scatter_add_(-1, indices.long(), listed.long()) > 0).cpu()


def _evaluate(fn: MaskMod, b: int, h: int, queries: Tensor, keys: Tensor) -> Tensor:
    over_keys = torch.vmap(fn, in_dims=(None, None, None, 0))
    over_both = torch.vmap(over_keys, in_dims=(None, None, 0, None))
    allowed = over_both(*torch.tensor([b, h], device=keys.device), queries, keys)
    if allowed.dtype != torch.bool:
        raise TypeError(f"fn: expected a function that gives a bool, got {allowed.dtype}")
    return allowed


def _tiles(rows: Callable[[int, int, Tensor], Tensor], B: int, H: int, Lq: int, Lk: int) -> TileArrays:
    """The table of what rows(b, h, queries), bool (queries, Lk), says of 64 queries at a time."""
    pack = torch.ops.attention_ext._pack_mask_bits.default
    query_tiles, key_tiles = -(-Lq // TILE), -(-Lk // TILE)
    every = pack(torch.ones(Lk, dtype=torch.bool, device="cpu"))[:, None]  # of a row, per key tile
    where, kinds, maps = [], [], [every.new_empty(0, TILE)]
    for n in range(B * H * query_tiles if Lk else 0):
        head, tile = divmod(n, query_tiles)
        queries = torch.arange(tile * TILE, min(Lq, (tile + 1) * TILE), device="cpu")
        words = pack(rows(*divmod(head, H), queries)).T  # (key tiles, queries)
        seen = words.any(-1).nonzero()[:, 0]
        words = words[seen]
        full = (words == every[seen]).all(-1)
        where.append(torch.stack([torch.full_like(seen, n), seen], dim=1))
        kinds.append(full)
        maps.append(torch.nn.functional.pad(words[~full], (0, TILE - len(queries))))
    where = torch.cat([every.new_empty(0, 2), *where])
    full = torch.cat([every.new_empty(0, dtype=torch.bool), *kinds])
    maps, index = torch.unique(torch.cat(maps), dim=0, return_inverse=True)
    entry_maps = where.new_full((len(where),), -1)
    entry_maps[~full] = index
    lists, key = where[:, 0], where[:, 1]
    column = lists // max(1, query_tiles) * key_tiles + key
    order = torch.argsort(column, stable=True)
    query = lists % max(1, query_tiles)
    return (
        _starts(lists, B, H, query_tiles),
        torch.stack([key, entry_maps], dim=1).int(),
        _starts(column, B, H, key_tiles),
        torch.stack([query[order], entry_maps[order]], dim=1).int(),
        maps,
        Lq,
        Lk,
    )


def _starts(lists: Tensor, B: int, H: int, tiles: int) -> Tensor:
    """Where each of B * H * tiles lists begins, and the last of a head ends: (B, H, tiles + 1)."""
    ends = torch.bincount(lists, minlength=B * H * tiles).cumsum(0)
    begins = torch.cat([ends.new_zeros(1), ends])
    first = torch.arange(B * H, device=ends.device)[:, None] * tiles
    return begins[first + torch.arange(tiles + 1, device=ends.device)].reshape(B, H, tiles + 1)
