// The table of tiles of chosen blocks of keys (masks.Selected), made on a device: the host sizes
// its arrays for the worst case, and reads none of its numbers. Kernels run on `stream`, in order,
// and don't wait for it; std::runtime_error if one does not start.
#pragma once

#include "core/mask.h"

namespace attn::cuda {

using Stream = void*;  // cudaStream_t

// All pointers are the device's. A list of indices has its own part of all arrays.
struct SelectedTable {
  int64_t lists = 0, repeat = 1;  // `repeat` heads share a list
  int64_t Lq = 0, Lk = 0, per_row = 0, query_block = 1, key_block = 1;
  const int32_t* indices = nullptr;  // [lists, query_blocks(), per_row]; no block there is none

  // Results: those of core/block_table.h.
  int64_t* row_start = nullptr;       // [lists, repeat, query_tiles() + 1]
  int64_t* column_start = nullptr;    // [lists, repeat, key_tiles() + 1]
  TableEntry* row_entries = nullptr;  // [lists, capacity()]
  TableEntry* column_entries = nullptr;
  // [lists, query_tiles(), key_tiles()]: 0 where the tile holds no pair, all bits where it holds
  // all; else which queries see its keys, or, where blocks cut tiles, any other number.
  uint64_t* words = nullptr;
  uint64_t* maps = nullptr;  // [lists, query_tiles(), key_tiles(), 64], where blocks cut tiles
  // Workspace: tiles of each row, then of each column.
  int32_t* counts = nullptr;  // [lists, query_tiles() + key_tiles()]

  ATTN_HD int64_t query_blocks() const { return (Lq + query_block - 1) / query_block; }
  ATTN_HD int64_t query_tiles() const { return (Lq + kTableTile - 1) / kTableTile; }
  ATTN_HD int64_t key_tiles() const { return (Lk + kTableTile - 1) / kTableTile; }
  ATTN_HD int64_t tiles() const { return query_tiles() * key_tiles(); }
  ATTN_HD bool cuts_tiles() const { return key_block % kTableTile != 0; }
  // The most entries of a list: rows of a tile choose blocks, which reach into tiles.
  ATTN_HD int64_t capacity() const {
    const int64_t rows = min64(kTableTile, (kTableTile - 1) / query_block + 2);
    const int64_t reached = (key_block + kTableTile - 2) / kTableTile + 1;
    return query_tiles() * min64(key_tiles(), rows * per_row * reached);
  }
};

void make_selected_table(const SelectedTable& table, Stream stream);

}  // namespace attn::cuda
