// Leaves and nodes on what is stored per tile or per sequence: tables, and packed sequences.
#include <algorithm>
#include <stdexcept>

#include "cpu/block_table_builder.h"
#include "cpu/mask_leaves.h"

namespace attn {

namespace {

void expect(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(std::string("block_table: expected ") + message);
}

// Lists of `tiles` rows of tiles per (b, h), each ascending within 0 .. others - 1.
void check_lists(const MaskArray& start, const MaskArray& entries, int64_t tiles, int64_t others,
                 int64_t maps) {
  expect(start.type == MaskArray::Type::kInt64 && start.sizes.size() == 3 &&
             start.size(2) == tiles + 1,
         "starts in int64 of shape (B, H, tiles + 1)");
  expect(
      entries.type == MaskArray::Type::kInt32 && entries.sizes.size() == 2 && entries.size(1) == 2,
      "entries in int32 of shape (n, 2)");
  const int64_t* first = static_cast<const int64_t*>(start.data);
  const TableEntry* entry = static_cast<const TableEntry*>(entries.data);
  const int64_t lists = start.size(0) * start.size(1), total = entries.size(0);
  for (int64_t n = 0; n < lists * (tiles + 1); ++n) {
    expect(0 <= first[n] && first[n] <= total, "starts within the entries");
    if (n % (tiles + 1) == tiles) continue;
    expect(first[n] <= first[n + 1] && first[n + 1] <= total, "starts in ascending order");
    for (int64_t e = first[n], previous = -1; e < first[n + 1]; previous = entry[e++].tile) {
      expect(previous < entry[e].tile && entry[e].tile < others, "tiles in ascending order");
      const int64_t map = entry[e].map;
      expect(map < maps && -2 - map < maps * kTableTile, "maps that are there");
    }
  }
}

class StoredTable final : public MaskExpression {
 public:
  StoredTable(const BlockTable& table, int64_t Lq, int64_t Lk) : table_(table), Lq_(Lq), Lk_(Lk) {}
  int64_t batches() const override { return table_.batches; }
  int64_t heads() const override { return table_.heads; }
  void check_sizes(int64_t Lq, int64_t Lk) const override {
    if (Lq != Lq_ || Lk != Lk_)
      throw std::invalid_argument("mask: expected " + std::to_string(Lq_) + " queries and " +
                                  std::to_string(Lk_) + " keys, as the mask was made for, got " +
                                  std::to_string(Lq) + " and " + std::to_string(Lk));
  }
  void classify(const MaskFrame& f, Range rows, TileSet& some, TileSet&) const override {
    for (int64_t q = rows.begin / kTableTile; q * kTableTile < rows.end; ++q) {
      const BlockTable::List list = table_.row(f.b, f.h, q);
      for (const TableEntry* e = list.begin; e != list.end; ++e)
        some.insert(f.overlapping({e->tile * kTableTile, (e->tile + 1) * kTableTile}));
    }
  }
  uint64_t row_map(const MaskFrame& f, int64_t i, int64_t j0) const override {
    const int64_t q = i / kTableTile, k = j0 / kTableTile, r = i % kTableTile,
                  shift = j0 % kTableTile;
    const uint64_t map = table_.find(f.b, f.h, q, k).row(r);
    if (!shift) return map;
    return map >> shift | table_.find(f.b, f.h, q, k + 1).row(r) << (kTableTile - shift);
  }

 private:
  BlockTable table_;
  int64_t Lq_, Lk_;
};

class Packed final : public MaskExpression {
 public:
  Packed(const MaskArray& q, const MaskArray& k, MaskNode part)
      : q_(sequences("cu_seqlens_q", q)), k_(sequences("cu_seqlens_k", k)), part_(std::move(part)) {
    if (q_.size() != k_.size())
      throw std::invalid_argument("cu_seqlens_k: expected the size of cu_seqlens_q, " +
                                  std::to_string(q_.size()) + ", got " + std::to_string(k_.size()));
    const int64_t count = static_cast<int64_t>(q_.size()) - 1;
    if (part_->batches() != 1 && part_->batches() != count)
      throw std::invalid_argument("mask: expected a batch size of 1 or " + std::to_string(count) +
                                  ", the number of sequences, got " +
                                  std::to_string(part_->batches()));
  }
  int64_t heads() const override { return part_->heads(); }
  void check_sizes(int64_t Lq, int64_t Lk) const override {
    check_total("cu_seqlens_q", q_.back(), Lq);
    check_total("cu_seqlens_k", k_.back(), Lk);
    for (size_t s = 0; s + 1 < q_.size(); ++s)
      part_->check_sizes(q_[s + 1] - q_[s], k_[s + 1] - k_[s]);
  }
  void classify(const MaskFrame& f, Range rows, TileSet& some, TileSet& every) const override {
    TileSet some_here(f.tiles), every_here(f.tiles);
    for (size_t s = sequence_of(rows.begin); s + 1 < q_.size() && q_[s] < rows.end; ++s) {
      const Range queries{max64(rows.begin, q_[s]) - q_[s], min64(rows.end, q_[s + 1]) - q_[s]};
      if (queries.empty() || k_[s] == k_[s + 1]) continue;
      some_here.clear();
      every_here.clear();
      part_->classify(frame_of(f, s), queries, some_here, every_here);
      some_here.keep(f.overlapping({k_[s], k_[s + 1]}));
      some |= some_here;
      if (queries.end - queries.begin < rows.end - rows.begin) continue;
      every_here.keep(f.contained({k_[s], k_[s + 1]}));
      every |= every_here;
    }
  }
  uint64_t row_map(const MaskFrame& f, int64_t i, int64_t j0) const override {
    const size_t s = sequence_of(i);
    const int64_t begin = k_[s] - j0, end = k_[s + 1] - j0;
    if (begin >= 64 || end <= 0 || begin == end) return 0;
    const uint64_t map = part_->row_map(frame_of(f, s), i - q_[s], max64(0, -begin));
    return (begin > 0 ? map << begin : map) & bits_between(begin, end);
  }

 private:
  std::vector<int64_t> q_, k_;
  MaskNode part_;

  static std::vector<int64_t> sequences(const char* name, const MaskArray& array) {
    const std::string expected = std::string(name) + ": expected ";
    if (array.type != MaskArray::Type::kInt64 || array.sizes.size() != 1 || array.size(0) < 1)
      throw std::invalid_argument(expected + "int64 of shape (sequences + 1,)");
    const int64_t* begin = static_cast<const int64_t*>(array.data);
    std::vector<int64_t> starts(begin, begin + array.size(0));
    if (starts[0] != 0 || !std::is_sorted(starts.begin(), starts.end()))
      throw std::invalid_argument(expected + "numbers that start at 0 and don't decrease");
    return starts;
  }
  static void check_total(const char* name, int64_t end, int64_t length) {
    if (end != length)
      throw std::invalid_argument(std::string(name) + ": expected a last number of " +
                                  std::to_string(length) + ", the length, got " +
                                  std::to_string(end));
  }

  // The sequence, not empty, that a query lies in.
  size_t sequence_of(int64_t i) const {
    return static_cast<size_t>(std::upper_bound(q_.begin(), q_.end(), i) - q_.begin()) - 1;
  }
  MaskFrame frame_of(const MaskFrame& f, size_t s) const {
    return {part_->batches() == 1 ? 0 : static_cast<int64_t>(s),
            f.h,
            q_[s + 1] - q_[s],
            k_[s + 1] - k_[s],
            f.tiles,
            f.origin - k_[s]};
  }
};

}  // namespace

BlockTable checked_table(const MaskArray* const (&parts)[5], int64_t Lq, int64_t Lk) {
  const auto& [row_start, row_entries, column_start, column_entries, maps] = parts;
  BlockTable table;
  expect(Lq >= 0 && Lk >= 0, "lengths of at least 0");
  table.query_tiles = (Lq + kTableTile - 1) / kTableTile;
  table.key_tiles = (Lk + kTableTile - 1) / kTableTile;
  expect(maps->type == MaskArray::Type::kInt64 && maps->sizes.size() == 2 &&
             maps->size(1) == kTableTile,
         "maps in int64 of shape (n, 64)");
  check_lists(*row_start, *row_entries, table.query_tiles, table.key_tiles, maps->size(0));
  check_lists(*column_start, *column_entries, table.key_tiles, table.query_tiles, maps->size(0));
  table.batches = row_start->size(0), table.heads = row_start->size(1);
  expect(column_start->size(0) == table.batches && column_start->size(1) == table.heads &&
             column_entries->size(0) == row_entries->size(0),
         "the lists of rows and columns to be of one size");
  table.row_start = static_cast<const int64_t*>(row_start->data);
  table.column_start = static_cast<const int64_t*>(column_start->data);
  table.row_entries = static_cast<const TableEntry*>(row_entries->data);
  table.column_entries = static_cast<const TableEntry*>(column_entries->data);
  table.maps = static_cast<const uint64_t*>(maps->data);
  table.entry_count = row_entries->size(0), table.map_count = maps->size(0);
  table.sparse = has_sparse_tiles(table);
  return table;
}

MaskNode make_table(const MaskArray* const (&parts)[5], int64_t Lq, int64_t Lk) {
  return std::make_unique<StoredTable>(checked_table(parts, Lq, Lk), Lq, Lk);
}

MaskNode make_packed(const MaskArray& cu_seqlens_q, const MaskArray& cu_seqlens_k, MaskNode part) {
  return std::make_unique<Packed>(cu_seqlens_q, cu_seqlens_k, std::move(part));
}

}  // namespace attn
