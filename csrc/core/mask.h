// The mask: which keys a query may attend to. Kernels ask about ranges and tiles first and look at
// single pairs, as 64-bit row maps, only in partial tiles. Mask = Band & key lengths & bit map &
// BlockTable, each part optional.
#pragma once

#include <cstdint>

#include "core/block_table.h"
#include "core/macros.h"

namespace attn {

struct Range {
  int64_t begin, end;
  ATTN_HD bool empty() const { return begin >= end; }
  ATTN_HD bool contains(Range r) const { return begin <= r.begin && r.end <= end; }
};

ATTN_HD inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
ATTN_HD inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// Bits [begin, end) of a word, the bounds clamped to 0..64.
ATTN_HD inline uint64_t bits_between(int64_t begin, int64_t end) {
  begin = max64(begin, 0);
  end = min64(end, 64);
  if (begin >= end) return 0;
  return (~uint64_t{0} >> (64 - (end - begin))) << begin;
}

// n modulo a positive number, never negative.
ATTN_HD inline int64_t modulo(int64_t n, int64_t positive) {
  const int64_t rest = n % positive;
  return rest < 0 ? rest + positive : rest;
}

// Bits first, first + step, ... of a word.
ATTN_HD inline uint64_t bits_by_step(int64_t first, int64_t step) {
  if (first >= 64) return 0;
  uint64_t map = uint64_t{1} << first;
  for (int64_t reach = step; reach < 64; reach *= 2) map |= map << reach;
  return map;
}

constexpr int64_t kUnbounded = int64_t{1} << 62;

// What of words [0, 64 * words) of a bit row stands at bits j0 .. j0 + 63; behind the end, 0.
ATTN_HD inline uint64_t bits_at(const uint64_t* row, int64_t words, int64_t j0) {
  const int64_t word = j0 / 64, shift = j0 % 64;
  if (word >= words) return 0;
  uint64_t map = row[word] >> shift;
  if (shift && word + 1 < words) map |= row[word + 1] << (64 - shift);
  return map;
}

struct Mask {
  int64_t Lq = 0, Lk = 0;

  // Band: lower <= j - (i + band_offset[b]) <= upper, bounds within +-kUnbounded, and that distance
  // is phase modulo dilation, 0 <= phase < dilation.
  int64_t lower = -kUnbounded, upper = kUnbounded;
  int64_t dilation = 1, phase = 0;
  const int64_t* band_offset = nullptr;  // (B,), within +-kUnbounded / 2

  const int64_t* key_lengths = nullptr;  // (B,), each 0..Lk

  // bit j % 64 of word (b, h, i, j / 64): the pair is allowed. A stride is 0 where the map is
  // broadcast.
  const uint64_t* bits = nullptr;
  int64_t bits_stride_b = 0, bits_stride_h = 0, bits_stride_q = 0;

  BlockTable table;

  ATTN_HD int64_t length(int64_t b) const { return key_lengths ? key_lengths[b] : Lk; }

  ATTN_HD int64_t offset(int64_t b) const { return band_offset ? band_offset[b] : 0; }

  // A query's keys by band and length: a superset of those it may see, exact without dilation, bit
  // map and table.
  ATTN_HD Range row_interval(int64_t b, int64_t i) const { return key_range(b, {i, i + 1}); }

  // The keys that some query of `rows` may see, but for what bit map and table say.
  ATTN_HD Range key_range(int64_t b, Range rows) const {
    const int64_t shift = offset(b);
    return {max64(0, rows.begin + shift + lower), min64(length(b), rows.end + shift + upper)};
  }

  // The queries that may see some key of `keys`, but for what bit map and table say.
  ATTN_HD Range query_range(int64_t b, Range keys) const {
    const int64_t end = min64(keys.end, length(b)), shift = offset(b);
    if (keys.begin >= end) return {0, 0};
    return {max64(0, keys.begin - shift - upper), min64(Lq, end - shift - lower)};
  }

  // The first block of keys, from j on, that some query of `rows` may see by the table: without one
  // j itself, else a multiple of 64, past Lk where there is none.
  ATTN_HD int64_t next_keys(int64_t b, Range heads, Range rows, int64_t j) const {
    if (!table) return j;
    int64_t next = table.key_tiles;
    for (int64_t h = heads.begin; h < (table.heads == 1 ? heads.begin + 1 : heads.end); ++h)
      for (int64_t q = rows.begin / kTableTile; q * kTableTile < rows.end; ++q) {
        const BlockTable::List list = table.row(b, h, q);
        const TableEntry* entry = list.from(j / kTableTile);
        if (entry != list.end) next = min64(next, entry->tile);
      }
    return next * kTableTile;
  }

  // The next queries of `rows`, at most `limit`, that may see the block of keys from j on by the
  // table; empty where there are none.
  ATTN_HD Range next_rows(int64_t b, int64_t h, int64_t j, Range rows, int64_t limit) const {
    if (rows.empty() || !table) return {rows.begin, min64(rows.begin + limit, rows.end)};
    const BlockTable::List list = table.column(b, h, j / kTableTile);
    const TableEntry* entry = list.from(rows.begin / kTableTile);
    if (entry == list.end) return {rows.end, rows.end};
    const int64_t begin = max64(rows.begin, entry->tile * kTableTile);
    int64_t end = (entry->tile + 1) * kTableTile;
    while (++entry != list.end && entry->tile * kTableTile == end && end - begin < limit)
      end += kTableTile;
    return {begin, min64(min64(end, begin + limit), rows.end)};
  }

  // Every query of `rows` and `heads` is known to see every key of `keys`.
  ATTN_HD bool covers(int64_t b, Range heads, Range rows, Range keys) const {
    if (bits || dilation > 1 || !row_interval(b, rows.begin).contains(keys) ||
        !row_interval(b, rows.end - 1).contains(keys))
      return false;
    if (!table) return true;
    for (int64_t h = heads.begin; h < (table.heads == 1 ? heads.begin + 1 : heads.end); ++h)
      for (int64_t q = rows.begin / kTableTile; q * kTableTile < rows.end; ++q)
        for (int64_t k = keys.begin / kTableTile; k * kTableTile < keys.end; ++k)
          if (!table.find(b, h, q, k).full()) return false;
    return true;
  }

  // Bit t is set iff band and length let query i see key j0 + t.
  ATTN_HD uint64_t band_map(int64_t b, int64_t i, int64_t j0) const {
    const Range keys = row_interval(b, i);
    const uint64_t map = bits_between(keys.begin - j0, keys.end - j0);
    if (dilation == 1) return map;
    return map & bits_by_step(modulo(i + offset(b) + phase - j0, dilation), dilation);
  }

  // The same for the bit map; bits behind the last key may be anything.
  ATTN_HD uint64_t stored_map(int64_t b, int64_t h, int64_t i, int64_t j0) const {
    const uint64_t* row = bits + b * bits_stride_b + h * bits_stride_h + i * bits_stride_q;
    return bits_at(row, (Lk + 63) / 64, j0);
  }

  // Row map: bit t is set iff query i may see key j0 + t.
  ATTN_HD uint64_t row_map(int64_t b, int64_t h, int64_t i, int64_t j0) const;
};

// Row maps of one query after the other over the keys from j0 on: a tile of the table is looked up
// once for neighbouring rows.
class RowMaps {
 public:
  ATTN_HD RowMaps(const Mask& mask, int64_t b, int64_t j0) : mask_(mask), b_(b), j0_(j0) {}

  ATTN_HD uint64_t operator()(int64_t h, int64_t i) {
    uint64_t map = mask_.band_map(b_, i, j0_);
    if (mask_.bits && map) map &= mask_.stored_map(b_, h, i, j0_);
    return mask_.table && map ? map & table_map(h, i) : map;
  }

 private:
  const Mask& mask_;
  const int64_t b_, j0_;
  int64_t head_ = -1, query_tile_ = -1;
  TableTile tile_, next_;

  ATTN_HD uint64_t table_map(int64_t h, int64_t i) {
    const int64_t query_tile = i / kTableTile, key_tile = j0_ / kTableTile;
    const int64_t head = mask_.table.heads == 1 ? 0 : h, shift = j0_ % kTableTile;
    if (query_tile != query_tile_ || head != head_) {
      tile_ = mask_.table.find(b_, head, query_tile, key_tile);
      next_ = shift ? mask_.table.find(b_, head, query_tile, key_tile + 1) : TableTile();
      query_tile_ = query_tile, head_ = head;
    }
    const int64_t r = i % kTableTile;
    return shift ? tile_.row(r) >> shift | next_.row(r) << (kTableTile - shift) : tile_.row(r);
  }
};

ATTN_HD inline uint64_t Mask::row_map(int64_t b, int64_t h, int64_t i, int64_t j0) const {
  return RowMaps(*this, b, j0)(h, i);
}

}  // namespace attn
