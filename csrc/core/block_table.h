// A mask as a list of tiles: those of 64 x 64 pairs that hold an allowed one, per query tile and,
// for the gradients of keys and values, per key tile.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace attn {

constexpr int64_t kTableTile = 64;  // queries and keys of a tile; the keys are one word of a map

struct TableEntry {
  int32_t tile;  // key tile in a row's list, query tile in a column's
  int32_t map;  // into the maps; -1: all pairs of the tile are allowed; below, word -2 - map of the
                // maps says which queries see all keys of the tile, the others seeing none
};

// One tile, found or not.
struct TableTile {
  uint64_t queries = 0;            // bit r: query r sees all keys; without row maps
  const uint64_t* rows = nullptr;  // 64 row maps, or null

  ATTN_HD bool full() const { return queries == ~uint64_t{0}; }
  // Bit t: query r of the tile may see its key t.
  ATTN_HD uint64_t row(int64_t r) const { return rows ? rows[r] : -(queries >> r & 1); }
};

struct BlockTable {
  int64_t query_tiles = 0, key_tiles = 0;
  int64_t batches = 1, heads = 1;  // 1 where all share the lists
  // The entries of list n of (b, h) are start[n] .. start[n + 1] - 1, tiles in ascending order.
  const int64_t* row_start = nullptr;     // (batches, heads, query_tiles + 1)
  const int64_t* column_start = nullptr;  // (batches, heads, key_tiles + 1)
  const TableEntry* row_entries = nullptr;
  const TableEntry* column_entries = nullptr;
  const uint64_t* maps = nullptr;  // (map_count, 64): equal tiles share one
  // Nothing beyond these is read, whatever the lists say: those on a device stay unchecked.
  int64_t entry_count = 0, map_count = 0;
  bool sparse = false;  // many queries of the tiles see none of their keys: it pays to gather rows

  ATTN_HD explicit operator bool() const { return row_start != nullptr; }

  struct List {
    const TableEntry *begin, *end;

    // The first entry whose tile is `tile` or comes after it.
    ATTN_HD const TableEntry* from(int64_t tile) const {
      const TableEntry* first = begin;
      for (int64_t n = end - begin; n > 0;) {
        const int64_t half = n / 2;
        if (first[half].tile < tile)
          first += half + 1, n -= half + 1;
        else
          n = half;
      }
      return first;
    }
  };

  // Key tiles that query tile `tile` sees.
  ATTN_HD List row(int64_t b, int64_t h, int64_t tile) const {
    return list(row_entries, row_start + list_of(b, h) * (query_tiles + 1) + tile);
  }
  // Query tiles that see key tile `tile`.
  ATTN_HD List column(int64_t b, int64_t h, int64_t tile) const {
    return list(column_entries, column_start + list_of(b, h) * (key_tiles + 1) + tile);
  }

  ATTN_HD TableTile find(int64_t b, int64_t h, int64_t query_tile, int64_t key_tile) const {
    const List list = row(b, h, query_tile);
    const TableEntry* entry = list.from(key_tile);
    return entry == list.end || entry->tile != key_tile ? TableTile() : tile(*entry);
  }
  ATTN_HD TableTile tile(TableEntry entry) const {
    if (entry.map == -1) return {~uint64_t{0}, nullptr};
    if (entry.map >= map_count || -2 - int64_t{entry.map} >= map_count * kTableTile) return {};
    if (entry.map >= 0) return {0, maps + entry.map * kTableTile};
    return {maps[-2 - entry.map], nullptr};
  }

 private:
  ATTN_HD int64_t entry_at(int64_t start) const {
    return start < 0 ? 0 : start > entry_count ? entry_count : start;
  }
  ATTN_HD List list(const TableEntry* entries, const int64_t* start) const {
    const int64_t begin = entry_at(start[0]), end = entry_at(start[1]);
    return {entries + begin, entries + (begin < end ? end : begin)};
  }
  ATTN_HD int64_t list_of(int64_t b, int64_t h) const {
    return (batches == 1 ? 0 : b) * heads + (heads == 1 ? 0 : h);
  }
};

}  // namespace attn
