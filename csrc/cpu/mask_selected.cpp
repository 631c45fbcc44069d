// Leaves of learned sparsity: blocks of keys chosen for each query, and compressed keys.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/mask_leaves.h"

namespace attn {

namespace {

void expect(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("mask: expected " + message);
}

bool is_size(int64_t n) { return 0 < n && n < int64_t{1} << 31; }

constexpr int64_t kMostBlocks = int64_t{1} << 24;

// Kept by tiles of 64 queries: which of them see each block that one of them sees.
class Selected final : public MaskExpression {
 public:
  Selected(const MaskArray& indices, int64_t repeat, int64_t query_block, int64_t key_block)
      : batches_(indices.size(0)),
        own_heads_(indices.size(1)),
        query_blocks_(indices.size(2)),
        repeat_(repeat),
        query_block_(query_block),
        key_block_(key_block) {
    expect(indices.type == MaskArray::Type::kInt32 && indices.sizes.size() == 4,
           "selected blocks in int32 of four dimensions");
    expect(is_size(repeat) && is_size(query_block) && is_size(key_block),
           "blocks of at least one query and key, for at least one head, and below 2**31");
    const int32_t* values = static_cast<const int32_t*>(indices.data);
    const int64_t lists = batches_ * own_heads_, per_row = indices.size(3);
    const int64_t count = lists * query_blocks_ * per_row;
    for (int64_t n = 0; n < count; ++n) last_block_ = max64(last_block_, values[n]);
    expect(last_block_ < kMostBlocks, "selected blocks below 2**24");
    tiles_ = (query_blocks_ * query_block + kTableTile - 1) / kTableTile;
    std::vector<uint64_t> seen_by(static_cast<size_t>(last_block_ + 1), 0);
    for (int64_t list = 0; list < lists; ++list)
      for (int64_t tile = 0; tile < tiles_; ++tile) {
        start_.push_back(entries_.size());
        add_tile(values + list * query_blocks_ * per_row, per_row, tile, seen_by);
      }
    start_.push_back(entries_.size());
  }
  int64_t batches() const override { return batches_; }
  int64_t heads() const override { return own_heads_ * repeat_; }
  int64_t head_group() const override { return own_heads_ == 1 ? 0 : repeat_; }
  void check_sizes(int64_t Lq, int64_t Lk) const override {
    const int64_t blocks = (Lq + query_block_ - 1) / query_block_;
    expect(query_blocks_ == blocks, "selected blocks for " + std::to_string(blocks) +
                                        " rows of queries, got " + std::to_string(query_blocks_));
    const int64_t key_blocks = (Lk + key_block_ - 1) / key_block_;
    expect(last_block_ < key_blocks, "selected blocks below " + std::to_string(key_blocks) +
                                         ", got " + std::to_string(last_block_));
  }
  void classify(const MaskFrame& f, Range rows, TileSet& some, TileSet& every) const override {
    for (int64_t tile = rows.begin / kTableTile; tile * kTableTile < rows.end; ++tile) {
      const uint64_t here = queries_of(rows, tile);
      const bool all_here = rows.begin / kTableTile == (rows.end - 1) / kTableTile;
      for (const Entry& entry : tile_of(f, tile)) {
        const Range keys = keys_of(entry.block);
        if (entry.queries & here) some.insert(f.overlapping(keys));
        if (all_here && !(here & ~entry.queries)) every.insert(f.contained(keys));
      }
    }
  }
  uint64_t row_map(const MaskFrame& f, int64_t i, int64_t j0) const override {
    uint64_t map = 0;
    for (const Entry& entry : within(tile_of(f, i / kTableTile), j0))
      if (entry.queries >> (i % kTableTile) & 1) map |= bits_of(entry.block, j0);
    return map;
  }
  void tile_maps(const MaskFrame& f, Range rows, int64_t j0, uint64_t* maps) const override {
    const int64_t tile = rows.begin / kTableTile, n = rows.end - rows.begin;
    if (rows.end > (tile + 1) * kTableTile) return MaskExpression::tile_maps(f, rows, j0, maps);
    std::fill_n(maps, n, 0);
    for (const Entry& entry : within(tile_of(f, tile), j0)) {
      const uint64_t queries = entry.queries >> (rows.begin % kTableTile),
                     keys = bits_of(entry.block, j0);
      for (int64_t r = 0; r < n; ++r) maps[r] |= -(queries >> r & 1) & keys;
    }
  }

 private:
  struct Entry {
    int64_t block;
    uint64_t queries;
  };
  struct Entries {
    const Entry *first, *last;
    const Entry* begin() const { return first; }
    const Entry* end() const { return last; }
  };

  int64_t batches_, own_heads_, query_blocks_, repeat_, query_block_, key_block_;
  int64_t tiles_ = 0, last_block_ = -1;
  std::vector<size_t> start_;  // (batches, own heads, tiles), and the end
  std::vector<Entry> entries_;

  // `seen_by` comes and goes as zeros, one for each block.
  void add_tile(const int32_t* rows, int64_t per_row, int64_t tile,
                std::vector<uint64_t>& seen_by) {
    const int64_t begin = tile * kTableTile;
    for (int64_t i = begin; i < min64(begin + kTableTile, query_blocks_ * query_block_); ++i) {
      const int32_t* blocks = rows + i / query_block_ * per_row;
      for (int64_t n = 0; n < per_row; ++n)
        if (blocks[n] >= 0) seen_by[static_cast<size_t>(blocks[n])] |= uint64_t{1} << (i - begin);
    }
    for (int64_t block = 0; block <= last_block_; ++block)
      if (uint64_t& queries = seen_by[static_cast<size_t>(block)]) {
        entries_.push_back({block, queries});
        queries = 0;
      }
  }

  Entries tile_of(const MaskFrame& f, int64_t tile) const {
    const int64_t list =
        (batches_ == 1 ? 0 : f.b) * own_heads_ + (own_heads_ == 1 ? 0 : f.h / repeat_);
    const size_t* start = start_.data() + list * tiles_ + tile;
    return {entries_.data() + start[0], entries_.data() + start[1]};
  }
  // Those of blocks with some of the keys j0 .. j0 + 63.
  Entries within(Entries all, int64_t j0) const {
    const auto before = [](const Entry& entry, int64_t block) { return entry.block < block; };
    const Entry* first = std::lower_bound(all.first, all.last, j0 / key_block_, before);
    return {first, std::lower_bound(first, all.last, (j0 + 63) / key_block_ + 1, before)};
  }

  static uint64_t queries_of(Range rows, int64_t tile) {
    return bits_between(rows.begin - tile * kTableTile, rows.end - tile * kTableTile);
  }
  Range keys_of(int64_t block) const { return {block * key_block_, (block + 1) * key_block_}; }
  uint64_t bits_of(int64_t block, int64_t j0) const {
    return bits_between(block * key_block_ - j0, (block + 1) * key_block_ - j0);
  }
};

class Compressed final : public MaskExpression {
 public:
  Compressed(int64_t length, int64_t stride, int64_t positions)
      : length_(length), stride_(stride), positions_(positions) {
    expect(is_size(length) && is_size(stride) && 0 <= positions && positions < kUnbounded,
           "compressed keys of at least one position each, and below 2**31");
  }
  void check_sizes(int64_t, int64_t Lk) const override {
    const int64_t keys = seen_from(positions_ - 1);
    expect(Lk == keys, std::to_string(keys) + " compressed keys, got " + std::to_string(Lk));
  }
  void classify(const MaskFrame& f, Range rows, TileSet& some, TileSet& every) const override {
    some.insert(f.overlapping({0, seen(f, rows.end - 1)}));
    every.insert(f.contained({0, seen(f, rows.begin)}));
  }
  uint64_t row_map(const MaskFrame& f, int64_t i, int64_t j0) const override {
    return bits_between(0, seen(f, i) - j0);
  }

 private:
  int64_t length_, stride_, positions_;

  // How many keys are seen from a position, from a query.
  int64_t seen_from(int64_t position) const {
    return position < length_ - 1 ? 0 : (position - length_ + 1) / stride_ + 1;
  }
  int64_t seen(const MaskFrame& f, int64_t i) const { return seen_from(i + positions_ - f.Lq); }
};

}  // namespace

MaskNode make_selected(const MaskArray& indices, int64_t repeat, int64_t query_block,
                       int64_t key_block) {
  return std::make_unique<Selected>(indices, repeat, query_block, key_block);
}

MaskNode make_compressed(int64_t length, int64_t stride, int64_t positions) {
  return std::make_unique<Compressed>(length, stride, positions);
}

}  // namespace attn
