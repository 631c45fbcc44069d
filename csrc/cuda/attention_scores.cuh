// The scores of one tile: which pairs count, and what a pair's score is.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/attention.h"
#include "cuda/tile.cuh"

namespace attn::cuda {

enum class TileKind { kSkip, kFull, kPartial };

template <class T>
ATTN_DEVICE T infinity() {
  return static_cast<T>(INFINITY);
}

// What the rows of scores are: a head's queries; or those of all heads that share keys, which are
// neighbours, as in GroupRows. Of a group, only some keys are looked at, and no sink.
enum class RowsOf { kHead, kGroup };

// Some rows of one batch row, and what a score in them is made of.
template <class T, RowsOf kRows = RowsOf::kHead>
struct HeadScores {
  static constexpr bool kGroup = kRows == RowsOf::kGroup;

  const AttentionCall& p;
  int64_t b, h;  // of a group: its first head
  std::conditional_t<kGroup, GroupRows, Rows> query;
  Rows key;
  uint32_t group;  // its heads
  Range within;    // its keys, from a tile's first one on
  T scale, softcap, slope;
  Dropout dropout;

  ATTN_DEVICE HeadScores(const AttentionCall& call, int64_t batch, int64_t head,
                         Range of_keys = {0, 0})
      : p(call),
        b(batch),
        h(head),
        query(query_rows()),
        key(rows_of(p.key, b, h / p.group(), p.Lk, p.D)),
        group(static_cast<uint32_t>(kGroup ? p.group() : 1)),
        within(of_keys),
        scale(static_cast<T>(p.score.scale)),
        softcap(static_cast<T>(p.score.softcap)),
        slope(p.alibi_slopes ? load_element<T>(p.alibi_slopes.at(b, h, 0), p.alibi_slopes.dtype)
                             : T(0)),
        dropout(p.dropout) {
    if (p.dropout_seed) dropout.seed = static_cast<uint64_t>(*p.dropout_seed);
  }

  ATTN_DEVICE T sink() const {
    if (kGroup || !p.sinks) return -infinity<T>();
    return load_element<T>(p.sinks.at(0, h, 0), p.sinks.dtype);
  }

  ATTN_DEVICE int64_t row_count() const { return kGroup ? p.Lq * group : p.Lq; }
  ATTN_DEVICE int64_t query_of(int64_t row) const {
    return kGroup ? static_cast<uint32_t>(row) / group : row;
  }
  ATTN_DEVICE int64_t head_of(int64_t row) const {
    return kGroup ? h + static_cast<uint32_t>(row) % group : h;
  }
  ATTN_DEVICE Range heads() const { return {h, h + (kGroup ? group : 1)}; }
  // Those that exist.
  ATTN_DEVICE Range queries_of(Range rows) const {
    if constexpr (!kGroup) return {rows.begin, min64(rows.end, p.Lq)};
    return {query_of(rows.begin), query_of(min64(rows.end, row_count()) - 1) + 1};
  }

  // The keys that some of `rows` may see, from a tile's first one on. Tensors of a mask may hold
  // anything: no key beyond Lk is read.
  ATTN_DEVICE Range keys_of(Range rows) const {
    const Range keys = p.mask.key_range(b, queries_of(rows));
    const Range tiles{max64(keys.begin, 0) / kTile * kTile, min64(keys.end, p.Lk)};
    if constexpr (!kGroup) return tiles;
    return {max64(tiles.begin, within.begin), min64(tiles.end, within.end)};
  }
  ATTN_DEVICE Range keys_of_tile(int64_t i0) const { return keys_of({i0, i0 + kTile}); }
  // The first tile of keys from j0 on, itself a tile's first, that the table lets some of `rows`
  // see.
  ATTN_DEVICE int64_t next_keys(Range rows, int64_t j0) const {
    return max64(j0, p.mask.next_keys(b, heads(), queries_of(rows), j0));
  }
  ATTN_DEVICE int64_t next_keys(int64_t i0, int64_t j0) const {
    return next_keys(Range{i0, i0 + kTile}, j0);
  }
  // The first tile of queries from i0 on, before `end`, that the table lets see the keys at j0.
  ATTN_DEVICE int64_t next_queries(int64_t j0, int64_t i0, int64_t end) const {
    return p.mask.next_rows(b, h, j0, {i0, end}, kTile).begin;
  }
  ATTN_DEVICE Range queries_of_tile(int64_t j0) const {
    const Range rows = p.mask.query_range(b, {j0, min64(j0 + kTile, p.Lk)});
    return {max64(rows.begin, 0) / kTile * kTile, min64(rows.end, p.Lq)};
  }

  ATTN_DEVICE bool covers(Range rows, Range keys) const {
    return p.mask.covers(b, heads(), queries_of(rows), keys);
  }
  ATTN_DEVICE uint64_t row_map(int64_t row, int64_t j0) const {
    return p.mask.row_map(b, head_of(row), query_of(row), j0);
  }

  // Fills memory.maps unless the tile is full. All threads come, and get the same answer.
  template <class Memory>
  ATTN_DEVICE TileKind map_tile(int64_t i0, int64_t j0, Memory& memory) const {
    if (!p.bias && (kGroup || i0 + kTile <= p.Lq) && j0 + kTile <= p.Lk &&
        covers({i0, i0 + kTile}, {j0, j0 + kTile}))
      return TileKind::kFull;
    uint64_t map = 0;
    if (threadIdx.x < kTile) {
      const int64_t i = i0 + threadIdx.x;
      if (i < row_count()) map = row_map(i, j0) & bits_between(0, p.Lk - j0);
      memory.maps[threadIdx.x] = map;
    }
    return __syncthreads_or(map != 0) ? TileKind::kPartial : TileKind::kSkip;
  }

  // A pair's score from its product, but for the bias; *cap_derivative is that of the softcap.
  ATTN_DEVICE T score(int64_t i, int64_t j, T product, T* cap_derivative) const {
    T s = product * scale;
    *cap_derivative = 1;
    if (softcap != 0) {
      const T t = std::tanh(s / softcap);
      s = softcap_value(t, softcap);
      *cap_derivative = softcap_derivative(t, T(1));
    }
    if (p.alibi_slopes) s += alibi_value(slope_of(i), alibi_distance(i, j));
    return s;
  }

  ATTN_DEVICE T slope_of(int64_t row) const {
    if constexpr (!kGroup) return slope;
    return load_element<T>(p.alibi_slopes.at(b, head_of(row), 0), p.alibi_slopes.dtype);
  }
  ATTN_DEVICE T alibi_distance(int64_t row, int64_t j) const {
    const int64_t distance = query_of(row) + p.score.alibi_offset - j;
    return static_cast<T>(distance < 0 ? -distance : distance);
  }

  ATTN_DEVICE const char* bias_at(int64_t row, int64_t j) const {
    return p.bias.at(b, head_of(row), query_of(row), j);
  }
  ATTN_DEVICE T bias(int64_t row, int64_t j) const {
    return load_element<T>(bias_at(row, j), p.bias.dtype);
  }

  // Products of queries and keys become scores, -inf for pairs that don't count. In a partial tile
  // with a bias, memory.seen gets the row maps without the pairs that the bias masks.
  template <class Memory>
  ATTN_DEVICE void scores(T (&s)[kMicro][kMicro], T (&cap_derivative)[kMicro][kMicro], int64_t i0,
                          int64_t j0, TileKind kind, Memory& memory) const {
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      const int row = thread_row() * kMicro + r, first = thread_column() * kMicro;
      const uint64_t map = kind == TileKind::kFull ? ~uint64_t{0} : memory.maps[row];
      uint64_t seen = 0;
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c) {
        const int64_t i = i0 + row, j = j0 + first + c;
        T value = -infinity<T>();
        if (map >> (first + c) & 1) {
          value = score(i, j, s[r][c], &cap_derivative[r][c]);
          const T added = p.bias ? bias(i, j) : T(0);
          const bool counts = added != -infinity<T>();
          value = counts ? value + added : -infinity<T>();
          seen |= uint64_t{counts} << (first + c);
        }
        s[r][c] = value;
      }
      if (!p.bias) continue;
      seen = across_columns(seen, [](uint64_t x, uint64_t y) { return x | y; });
      if (thread_column() == 0) memory.seen[row] = seen;
    }
  }

  // The row maps that memory holds after scores(), null where all pairs count.
  template <class Memory>
  ATTN_DEVICE const uint64_t* seen_maps(TileKind kind, Memory& memory) const {
    return kind == TileKind::kFull ? nullptr : p.bias ? memory.seen : memory.maps;
  }

  // Bit t: the weight of key 4 * k_group + t is kept.
  ATTN_DEVICE uint32_t keep4(int64_t row, int64_t k_group) const {
    return dropout.keep4(b, head_of(row), query_of(row), k_group);
  }
  // Bit c: the weight of key j0 + 4 tx + c is kept.
  ATTN_DEVICE uint32_t kept(int64_t row, int64_t j0) const {
    return dropout.active() ? keep4(row, j0 / 4 + thread_column()) : 0xf;
  }

 private:
  ATTN_DEVICE auto query_rows() const {
    if constexpr (kGroup)
      return GroupRows(p.query, b, h, p.group(), p.Lq, p.D);
    else
      return rows_of(p.query, b, h, p.Lq, p.D);
  }
};

}  // namespace attn::cuda
