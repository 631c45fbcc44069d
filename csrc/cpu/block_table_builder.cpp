#include "cpu/block_table_builder.h"

#include <array>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <unordered_map>

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
  Builder(const MaskExpression& mask, int64_t Lq, int64_t Lk) : mask_(mask) {
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
  BlockTableArrays table_;
  MaskFrame frame_;
  std::unordered_map<TileMap, int32_t, HashTileMap> known_;

  int64_t entries() const { return static_cast<int64_t>(table_.row_entries.size()); }

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
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const uint64_t row = mask_.row_map(frame_, i, j0) & existing;
      map[static_cast<size_t>(i - rows.begin)] = row;
      any |= row;
      all &= row;
    }
    if (!any) return false;
    if (all == existing) return true;
    if (known_.size() >= std::numeric_limits<int32_t>::max())
      throw std::invalid_argument("mask: expected fewer than 2**31 different tiles");
    const auto [at, fresh] = known_.try_emplace(map, static_cast<int32_t>(known_.size()));
    if (fresh) table_.maps.insert(table_.maps.end(), map.begin(), map.end());
    index = at->second;
    return true;
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
  return table;
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
      const uint64_t map =
          e->map < 0 ? ~uint64_t{0} : table.maps[e->map * kTableTile + i % kTableTile];
      for (int64_t j = j0; j < end; ++j) keep[j] = map >> (j - j0) & 1;
    }
  }
}

}  // namespace attn
