#include "cpu/block_table_builder.h"

#include <array>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <unordered_map>
#include <utility>

namespace attn {

namespace {

using TileMap = std::array<uint64_t, kTableTile>;

struct HashTileMap {
  size_t operator()(const TileMap& map) const {
    uint64_t hash = 0;
    for (const uint64_t row : map) {
      hash = (hash ^ row) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 29;
    }
    return static_cast<size_t>(hash);
  }
};

class Builder {
 public:
  Builder(const MaskExpression& mask, int64_t Lq, int64_t Lk)
      : mask_(mask), group_(max64(1, mask.head_group())) {
    mask.check_sizes(Lq, Lk);
    table_.batches = mask.batches();
    table_.heads = mask.heads();
    table_.query_tiles = (Lq + kTableTile - 1) / kTableTile;
    table_.key_tiles = (Lk + kTableTile - 1) / kTableTile;
    if (table_.query_tiles > std::numeric_limits<int32_t>::max() ||
        table_.key_tiles > std::numeric_limits<int32_t>::max())
      throw std::invalid_argument("mask: expected lengths below 2**37");
    frame_.Lq = Lq, frame_.Lk = Lk, frame_.tiles = table_.key_tiles;
  }

  BlockTableArrays build() {
    for (frame_.b = 0; frame_.b < table_.batches; ++frame_.b)
      for (frame_.h = 0; frame_.h < table_.heads; ++frame_.h) {
        if (frame_.h % group_ != 0) {
          share_last_head();
          continue;
        }
        const size_t first = table_.row_start.size();
        for (int64_t tile = 0; tile < table_.query_tiles; ++tile) {
          table_.row_start.push_back(entries());
          build_row(tile);
        }
        table_.row_start.push_back(entries());
        transpose(table_.row_start.data() + first);
      }
    return std::move(table_);
  }

 private:
  const MaskExpression& mask_;
  const int64_t group_;
  BlockTableArrays table_;
  MaskFrame frame_;
  std::unordered_map<TileMap, int32_t, HashTileMap> known_;
  std::unordered_map<uint64_t, int32_t> known_words_;
  int64_t free_word_ = 0;  // of the map that words go to; at a map's begin, that one is full

  int64_t entries() const { return static_cast<int64_t>(table_.row_entries.size()); }

  void share_last_head() {
    for (auto [start, tiles] : {std::pair(&table_.row_start, table_.query_tiles),
                                std::pair(&table_.column_start, table_.key_tiles)})
      for (int64_t n = 0; n <= tiles; ++n)
        start->push_back((*start)[start->size() - static_cast<size_t>(tiles + 1)]);
  }

  void build_row(int64_t tile) {
    const Range rows{tile * kTableTile, min64(frame_.Lq, (tile + 1) * kTableTile)};
    TileSet some(frame_.tiles), every(frame_.tiles);
    mask_.classify(frame_, rows, some, every);
    for (int64_t key = some.next(0); key < frame_.tiles; key = some.next(key + 1)) {
      int32_t map = -1;
      if (!every.has(key) && !partial_map(rows, key, map)) continue;
      table_.row_entries.push_back({static_cast<int32_t>(key), map});
    }
  }

  // The index of the tile's map, -1 if all pairs are allowed; false if none is.
  bool partial_map(Range rows, int64_t key_tile, int32_t& index) {
    const int64_t j0 = key_tile * kTableTile;
    const uint64_t existing = bits_between(0, frame_.Lk - j0);
    TileMap map{};
    uint64_t any = 0, all = existing;
    mask_.tile_maps(frame_, rows, j0, map.data());
    uint64_t queries = 0;
    bool whole = true;  // queries see all keys of the tile, or none
    for (size_t r = 0; r < static_cast<size_t>(rows.end - rows.begin); ++r) {
      const uint64_t row = map[r] &= existing;
      any |= row;
      all &= row;
      whole = whole && (row == 0 || row == existing);
      queries |= uint64_t{row != 0} << r;
    }
    if (!any) return false;
    if (all == existing) return true;
    index = whole ? -2 - word_of(queries) : map_of(map);
    return true;
  }

  int32_t map_of(const TileMap& map) {
    const auto [at, fresh] = known_.try_emplace(map, maps());
    if (fresh) add_map(map);
    return at->second;
  }

  int32_t word_of(uint64_t queries) {
    const auto [at, fresh] = known_words_.try_emplace(queries, 0);
    if (!fresh) return at->second;
    if (free_word_ % kTableTile == 0) {
      free_word_ = int64_t{maps()} * kTableTile;
      add_map({});
    }
    table_.maps[static_cast<size_t>(free_word_)] = queries;
    return at->second = static_cast<int32_t>(free_word_++);
  }

  int32_t maps() const { return static_cast<int32_t>(table_.maps.size() / kTableTile); }

  void add_map(const TileMap& map) {
    if (table_.maps.size() >= std::numeric_limits<int32_t>::max())
      throw std::invalid_argument("mask: expected fewer than 2**25 different tiles");
    table_.maps.insert(table_.maps.end(), map.begin(), map.end());
  }

  // The lists per key tile of one (b, h), from those per query tile: counted, then dealt out.
  void transpose(const int64_t* row_start) {
    const int64_t base = row_start[0], end = row_start[table_.query_tiles];
    std::vector<int64_t> next(static_cast<size_t>(table_.key_tiles + 1), 0);
    for (int64_t e = base; e < end; ++e) ++next[table_.row_entries[e].tile + 1];
    next[0] = base;
    for (int64_t tile = 0; tile < table_.key_tiles; ++tile) next[tile + 1] += next[tile];
    table_.column_start.insert(table_.column_start.end(), next.begin(), next.end());
    table_.column_entries.resize(static_cast<size_t>(end));
    for (int64_t tile = 0; tile < table_.query_tiles; ++tile)
      for (int64_t e = row_start[tile]; e < row_start[tile + 1]; ++e) {
        const TableEntry entry = table_.row_entries[e];
        table_.column_entries[next[entry.tile]++] = {static_cast<int32_t>(tile), entry.map};
      }
  }
};

}  // namespace

BlockTable BlockTableArrays::view() const {
  BlockTable table;
  table.query_tiles = query_tiles, table.key_tiles = key_tiles;
  table.batches = batches, table.heads = heads;
  table.row_start = row_start.data(), table.column_start = column_start.data();
  table.row_entries = row_entries.data(), table.column_entries = column_entries.data();
  table.maps = maps.data();
  table.entry_count = static_cast<int64_t>(row_entries.size());
  table.map_count = static_cast<int64_t>(maps.size()) / kTableTile;
  table.sparse = has_sparse_tiles(table);
  return table;
}

bool has_sparse_tiles(const BlockTable& table) {
  std::vector<int64_t> rows_of(static_cast<size_t>(table.map_count));
  for (int64_t m = 0; m < table.map_count; ++m)
    for (int64_t r = 0; r < kTableTile; ++r) rows_of[m] += table.maps[m * kTableTile + r] != 0;
  int64_t seeing = 0;
  for (int64_t e = 0; e < table.entry_count; ++e) {
    const TableEntry entry = table.row_entries[e];
    seeing += entry.map >= 0 ? rows_of[entry.map] : __builtin_popcountll(table.tile(entry).queries);
  }
  return 5 * seeing < 3 * kTableTile * table.entry_count;
}

BlockTableArrays build_block_table(const MaskExpression& mask, int64_t Lq, int64_t Lk) {
  return Builder(mask, Lq, Lk).build();
}

void dense_block_table(const BlockTable& table, int64_t b, int64_t h, int64_t Lq, int64_t Lk,
                       uint8_t* keep) {
  memset(keep, 0, static_cast<size_t>(Lq * Lk));
  for (int64_t i = 0; i < Lq; ++i, keep += Lk) {
    const BlockTable::List list = table.row(b, h, i / kTableTile);
    for (const TableEntry* e = list.begin; e != list.end; ++e) {
      const int64_t j0 = e->tile * kTableTile, end = min64(Lk, j0 + kTableTile);
      const uint64_t map = table.tile(*e).row(i % kTableTile);
      for (int64_t j = j0; j < end; ++j) keep[j] = map >> (j - j0) & 1;
    }
  }
}

}  // namespace attn
