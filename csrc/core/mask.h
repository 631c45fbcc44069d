// The mask: which keys a query may attend to. Kernels ask about ranges and tiles first and look at
// single pairs, as 64-bit row maps, only in partial tiles. Mask = Band & key lengths & bit map,
// each part optional.
#pragma once

#include <cstdint>

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

constexpr int64_t kUnbounded = int64_t{1} << 62;

struct Mask {
  int64_t Lq = 0, Lk = 0;

  // Band: lower <= j - (i + band_offset[b]) <= upper, bounds within +-kUnbounded.
  int64_t lower = -kUnbounded, upper = kUnbounded;
  const int64_t* band_offset = nullptr;  // (B,), within +-kUnbounded / 2

  const int64_t* key_lengths = nullptr;  // (B,), each 0..Lk

  // bit j % 64 of word (b, h, i, j / 64): the pair is allowed. A stride is 0 where the map is
  // broadcast.
  const uint64_t* bits = nullptr;
  int64_t bits_stride_b = 0, bits_stride_h = 0, bits_stride_q = 0;

  ATTN_HD int64_t length(int64_t b) const { return key_lengths ? key_lengths[b] : Lk; }

  ATTN_HD int64_t offset(int64_t b) const { return band_offset ? band_offset[b] : 0; }

  // A query's keys by band and length: a superset of those it may see, exact without a bit map.
  ATTN_HD Range row_interval(int64_t b, int64_t i) const { return key_range(b, {i, i + 1}); }

  // The keys that some query of `rows` may see.
  ATTN_HD Range key_range(int64_t b, Range rows) const {
    const int64_t shift = offset(b);
    return {max64(0, rows.begin + shift + lower), min64(length(b), rows.end + shift + upper)};
  }

  // The queries that may see some key of `keys`.
  ATTN_HD Range query_range(int64_t b, Range keys) const {
    const int64_t end = min64(keys.end, length(b)), shift = offset(b);
    if (keys.begin >= end) return {0, 0};
    return {max64(0, keys.begin - shift - upper), min64(Lq, end - shift - lower)};
  }

  // Every query of `rows` may see every key of `keys`, by band and length alone.
  ATTN_HD bool covers(int64_t b, Range rows, Range keys) const {
    return !bits && row_interval(b, rows.begin).contains(keys) &&
           row_interval(b, rows.end - 1).contains(keys);
  }

  // Row map: bit t is set iff query i may see key j0 + t.
  ATTN_HD uint64_t row_map(int64_t b, int64_t h, int64_t i, int64_t j0) const {
    const Range keys = row_interval(b, i);
    uint64_t map = bits_between(keys.begin - j0, keys.end - j0);
    if (bits && map) {
      const uint64_t* row = bits + b * bits_stride_b + h * bits_stride_h + i * bits_stride_q;
      const int64_t word = j0 / 64, shift = j0 % 64;
      uint64_t stored = row[word] >> shift;
      if (shift && (word + 1) * 64 < Lk) stored |= row[word + 1] << (64 - shift);
      map &= stored;
    }
    return map;
  }
};

}  // namespace attn
