#include "cpu/mask_leaves.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace attn {

namespace {

void expect(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("mask: expected " + message);
}

std::string number(int64_t n) { return std::to_string(n); }

const int64_t* int64_values(const MaskArray& array, size_t dimensions, const char* what) {
  expect(array.type == MaskArray::Type::kInt64 && array.sizes.size() == dimensions, what);
  return static_cast<const int64_t*>(array.data);
}

// i' - i of sequences aligned at the last key or at the first one.
int64_t shift_of(const MaskFrame& frame, bool at_end) { return at_end ? frame.Lk - frame.Lq : 0; }

class Band final : public MaskExpression {
 public:
  Band(int64_t lower, int64_t upper, int64_t dilation, int64_t phase, bool at_end)
      : lower_(std::clamp(lower, -kUnbounded, kUnbounded)),
        upper_(std::clamp(upper, -kUnbounded, kUnbounded)),
        dilation_(dilation),
        phase_(modulo(phase, dilation)),
        at_end_(at_end) {}
  void check_sizes(int64_t, int64_t) const override {}
  void classify(const MaskFrame& f, Range rows, TileSet& some, TileSet& every) const override {
    const int64_t shift = shift_of(f, at_end_);
    const int64_t first = rows.begin + shift, last = rows.end - 1 + shift;
    some.insert(f.overlapping({first + lower_, last + upper_ + 1}));
    if (dilation_ == 1) every.insert(f.contained({last + lower_, first + upper_ + 1}));
  }
  uint64_t row_map(const MaskFrame& f, int64_t i, int64_t j0) const override {
    const int64_t from = i + shift_of(f, at_end_) - j0;
    const uint64_t map = bits_between(from + lower_, from + upper_ + 1);
    if (dilation_ == 1) return map;
    return map & bits_by_step(modulo(from + phase_, dilation_), dilation_);
  }

 private:
  int64_t lower_, upper_, dilation_, phase_;
  bool at_end_;
};

class Lengths final : public MaskExpression {
 public:
  explicit Lengths(const MaskArray& lengths)
      : lengths_(int64_values(lengths, 1, "key lengths in int64 of shape (B,)")),
        batches_(lengths.size(0)) {}
  int64_t batches() const override { return batches_; }
  void check_sizes(int64_t, int64_t) const override {}
  void classify(const MaskFrame& f, Range, TileSet& some, TileSet& every) const override {
    some.insert(f.overlapping({0, length(f)}));
    every.insert(f.contained({0, length(f)}));
  }
  uint64_t row_map(const MaskFrame& f, int64_t, int64_t j0) const override {
    return bits_between(0, length(f) - j0);
  }

 private:
  const int64_t* lengths_;
  int64_t batches_;

  int64_t length(const MaskFrame& f) const {
    return std::clamp<int64_t>(lengths_[batches_ == 1 ? 0 : f.b], 0, f.Lk);
  }
};

class Bits final : public MaskExpression {
 public:
  Bits(const MaskArray& words, int64_t keys)
      : words_(reinterpret_cast<const uint64_t*>(
            int64_values(words, 4, "mask bits in int64 of four dimensions"))),
        batches_(words.size(0)),
        heads_(words.size(1)),
        rows_(words.size(2)),
        words_per_row_(words.size(3)),
        keys_(keys) {
    expect(words_per_row_ == (keys + 63) / 64, "mask bits of " + number(keys) + " keys");
  }
  int64_t batches() const override { return batches_; }
  int64_t heads() const override { return heads_; }
  void check_sizes(int64_t Lq, int64_t Lk) const override {
    expect((rows_ == 1 || rows_ == Lq) && (keys_ == 1 || keys_ == Lk),
           "a map of " + number(Lq) + " or 1 queries and " + number(Lk) + " or 1 keys, got " +
               number(rows_) + " and " + number(keys_));
  }
  void classify(const MaskFrame& f, Range, TileSet& some, TileSet&) const override {
    some.insert({0, f.tiles});
  }
  uint64_t row_map(const MaskFrame& f, int64_t i, int64_t j0) const override {
    const int64_t list = (batches_ == 1 ? 0 : f.b) * heads_ + (heads_ == 1 ? 0 : f.h);
    const uint64_t* row = words_ + (list * rows_ + (rows_ == 1 ? 0 : i)) * words_per_row_;
    if (keys_ == 1) return row[0] & 1 ? ~uint64_t{0} : 0;
    return bits_at(row, words_per_row_, j0);
  }

 private:
  const uint64_t* words_;
  int64_t batches_, heads_, rows_, words_per_row_, keys_;
};

class Documents final : public MaskExpression {
 public:
  Documents(const MaskArray& ids, const MaskArray* query_ids, bool at_end)
      : ids_(int64_values(ids, 2, "document ids in int64 of shape (B, Lk)")),
        query_ids_(query_ids ? int64_values(*query_ids, 2, "document ids in int64 of shape (B, Lq)")
                             : nullptr),
        id_batches_(ids.size(0)),
        query_batches_(query_ids ? query_ids->size(0) : 1),
        Lk_(ids.size(1)),
        Lq_(query_ids ? query_ids->size(1) : 0),
        at_end_(at_end),
        blocks_((Lk_ + kTableTile - 1) / kTableTile) {
    expect(id_batches_ == query_batches_ || id_batches_ == 1 || query_batches_ == 1,
           "document ids of one batch size");
    for (int64_t b = 0; b < id_batches_; ++b)
      for (int64_t j = 0; j < Lk_; j += kTableTile) {
        const int64_t *begin = ids_ + b * Lk_ + j,
                      *end = ids_ + b * Lk_ + min64(Lk_, j + kTableTile);
        smallest_.push_back(*std::min_element(begin, end));
        largest_.push_back(*std::max_element(begin, end));
      }
  }
  int64_t batches() const override { return id_batches_ == 1 ? query_batches_ : id_batches_; }
  void check_sizes(int64_t Lq, int64_t Lk) const override {
    expect(Lk_ == Lk, "document ids of " + number(Lk) + " keys, got " + number(Lk_));
    expect(!query_ids_ || Lq_ == Lq,
           "document ids of " + number(Lq) + " queries, got " + number(Lq_));
  }
  void classify(const MaskFrame& f, Range rows, TileSet& some, TileSet& every) const override {
    int64_t low = std::numeric_limits<int64_t>::max(), high = -1;
    bool all_see = true;
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t id = query_id(f, i);
      if (id >= 0) low = min64(low, id), high = max64(high, id);
      all_see = all_see && id >= 0;
    }
    if (high < 0) return;
    const int64_t first = (id_batches_ == 1 ? 0 : f.b) * blocks_;
    for (int64_t t = 0; t < f.tiles; ++t) {
      const int64_t begin = max64(0, f.origin + t * kTableTile),
                    end = min64(Lk_, f.origin + (t + 1) * kTableTile);
      if (begin >= end) continue;
      const int64_t one = first + begin / kTableTile, two = first + (end - 1) / kTableTile;
      const int64_t least = min64(smallest_[one], smallest_[two]),
                    most = max64(largest_[one], largest_[two]);
      if (low > most || high < least) continue;
      some.insert({t, t + 1});
      if (all_see && low == high && least == low && most == low) every.insert({t, t + 1});
    }
  }
  uint64_t row_map(const MaskFrame& f, int64_t i, int64_t j0) const override {
    const int64_t id = query_id(f, i);
    if (id < 0) return 0;
    const int64_t* ids = ids_ + (id_batches_ == 1 ? 0 : f.b) * Lk_ + j0;
    uint64_t map = 0;
    for (int64_t t = 0; t < min64(64, Lk_ - j0); ++t) map |= uint64_t{ids[t] == id} << t;
    return map;
  }

 private:
  const int64_t *ids_, *query_ids_;
  int64_t id_batches_, query_batches_, Lk_, Lq_;
  bool at_end_;
  int64_t blocks_;
  std::vector<int64_t> smallest_, largest_;  // id of each block of keys

  int64_t query_id(const MaskFrame& f, int64_t i) const {
    if (query_ids_) return query_ids_[(query_batches_ == 1 ? 0 : f.b) * Lq_ + i];
    const int64_t position = i + shift_of(f, at_end_);
    if (position < 0 || position >= Lk_) return -1;
    return ids_[(id_batches_ == 1 ? 0 : f.b) * Lk_ + position];
  }
};

class Global final : public MaskExpression {
 public:
  Global(int64_t tokens, const MaskArray* positions, bool at_end) : at_end_(at_end) {
    if (positions) {
      const int64_t* p = int64_values(*positions, 1, "token positions in int64 of shape (n,)");
      positions_.assign(p, p + positions->size(0));
      std::sort(positions_.begin(), positions_.end());
      expect(positions_.empty() || positions_[0] >= 0, "token positions of at least 0");
    } else {
      first_ = max64(tokens, 0);
    }
  }
  void check_sizes(int64_t, int64_t) const override {}
  void classify(const MaskFrame& f, Range rows, TileSet& some, TileSet& every) const override {
    const int64_t shift = shift_of(f, at_end_);
    const Range seeing{max64(0, rows.begin + shift), rows.end + shift};
    if (seeing.empty()) return;
    const bool all_see = rows.begin + shift >= 0;
    const int64_t global_rows = count(seeing);
    if (global_rows) some.insert({0, f.tiles});
    if (all_see && global_rows == rows.end - rows.begin) every.insert({0, f.tiles});
    some.insert(f.overlapping({0, first_}));
    if (all_see) every.insert(f.contained({0, first_}));
    for (const int64_t j : positions_) some.insert(f.overlapping({j, j + 1}));
  }
  uint64_t row_map(const MaskFrame& f, int64_t i, int64_t j0) const override {
    const int64_t position = i + shift_of(f, at_end_);
    if (position < 0) return 0;
    if (count({position, position + 1})) return ~uint64_t{0};
    uint64_t map = bits_between(0, first_ - j0);
    for (auto j = std::lower_bound(positions_.begin(), positions_.end(), j0);
         j != positions_.end() && *j < j0 + 64; ++j)
      map |= uint64_t{1} << (*j - j0);
    return map;
  }

 private:
  int64_t first_ = 0;
  std::vector<int64_t> positions_;
  bool at_end_;

  // Of the positions in a range, those that are global; some may count twice.
  int64_t count(Range range) const {
    const auto begin = std::lower_bound(positions_.begin(), positions_.end(), range.begin);
    const auto end = std::lower_bound(begin, positions_.end(), range.end);
    return max64(0, min64(range.end, first_) - range.begin) + (end - begin);
  }
};

class Blocks final : public MaskExpression {
 public:
  Blocks(const MaskArray& map, int64_t query_block, int64_t key_block)
      : map_(static_cast<const uint8_t*>(map.data)),
        batches_(map.size(0)),
        heads_(map.size(1)),
        query_blocks_(map.size(2)),
        key_blocks_(map.size(3)),
        query_block_(query_block),
        key_block_(key_block) {
    expect(map.type == MaskArray::Type::kBool && map.sizes.size() == 4,
           "a block map of bools with four dimensions");
    expect(query_block > 0 && key_block > 0, "blocks of at least one query and key");
  }
  int64_t batches() const override { return batches_; }
  int64_t heads() const override { return heads_; }
  void check_sizes(int64_t Lq, int64_t Lk) const override {
    const int64_t queries = (Lq + query_block_ - 1) / query_block_,
                  keys = (Lk + key_block_ - 1) / key_block_;
    expect(query_blocks_ == queries && key_blocks_ == keys,
           "a block map of " + number(queries) + " x " + number(keys) + " blocks, got " +
               number(query_blocks_) + " x " + number(key_blocks_));
  }
  void classify(const MaskFrame& f, Range rows, TileSet& some, TileSet& every) const override {
    for (int64_t t = 0; t < f.tiles; ++t) {
      const int64_t begin = max64(0, f.origin + t * kTableTile),
                    end = min64(f.Lk, f.origin + (t + 1) * kTableTile);
      if (begin >= end) continue;
      bool any = false, all = true;
      for (int64_t i = rows.begin / query_block_; i * query_block_ < rows.end; ++i)
        for (int64_t j = begin / key_block_; j * key_block_ < end; ++j) {
          const bool allowed = row(f, i)[j];
          any = any || allowed;
          all = all && allowed;
        }
      if (any) some.insert({t, t + 1});
      if (all) every.insert({t, t + 1});
    }
  }
  uint64_t row_map(const MaskFrame& f, int64_t i, int64_t j0) const override {
    const uint8_t* allowed = row(f, i / query_block_);
    uint64_t map = 0;
    for (int64_t j = j0 / key_block_; j < key_blocks_ && j * key_block_ < j0 + 64; ++j)
      if (allowed[j]) map |= bits_between(j * key_block_ - j0, (j + 1) * key_block_ - j0);
    return map;
  }

 private:
  const uint8_t* map_;
  int64_t batches_, heads_, query_blocks_, key_blocks_, query_block_, key_block_;

  const uint8_t* row(const MaskFrame& f, int64_t query_block) const {
    const int64_t list = (batches_ == 1 ? 0 : f.b) * heads_ + (heads_ == 1 ? 0 : f.h);
    return map_ + (list * query_blocks_ + query_block) * key_blocks_;
  }
};

}  // namespace

MaskNode make_band(int64_t lower, int64_t upper, int64_t dilation, int64_t phase, bool at_end) {
  expect(dilation > 0, "a dilation of at least 1, got " + number(dilation));
  return std::make_unique<Band>(lower, upper, dilation, phase, at_end);
}

MaskNode make_lengths(const MaskArray& lengths) { return std::make_unique<Lengths>(lengths); }

MaskNode make_bits(const MaskArray& words, int64_t keys) {
  return std::make_unique<Bits>(words, keys);
}

MaskNode make_documents(const MaskArray& ids, const MaskArray* query_ids, bool at_end) {
  return std::make_unique<Documents>(ids, query_ids, at_end);
}

MaskNode make_global(int64_t tokens, const MaskArray* positions, bool at_end) {
  return std::make_unique<Global>(tokens, positions, at_end);
}

MaskNode make_blocks(const MaskArray& map, int64_t query_block, int64_t key_block) {
  return std::make_unique<Blocks>(map, query_block, key_block);
}

}  // namespace attn
