// The selection of blocks: what is scored, the scores of some rows, and their choice. Every number
// of a row is made by the same steps whatever rows and columns stand beside it, so that a query
// chooses the same, bit for bit, alone and in a sequence.
#pragma once

#include <cstring>
#include <limits>

#include "cuda/select_blocks.h"
#include "cuda/tile.cuh"

namespace attn::cuda {

// The query heads of one list of choices.
ATTN_DEVICE Range heads_of_list(const SelectCall& p, int64_t list_head) {
  const int64_t heads = p.Hq / p.heads();
  return {list_head * heads, (list_head + 1) * heads};
}

// A thread per column of a row of queries that choose together: their sum, over heads and rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    select_queries_kernel(const __grid_constant__ SelectCall p) {
  const int64_t at = thread_item(), d = at % p.D, row = at / p.D % p.rows();
  const int64_t list = at / p.D / p.rows(), b = list / p.heads();
  if (b >= p.B) return;
  const Range heads = heads_of_list(p, list % p.heads());
  const int64_t first = row * p.query_block, end = min64(first + p.query_block, p.Lq);
  T sum = 0;
  for (int64_t h = heads.begin; h < heads.end; ++h)
    for (int64_t i = first; i < end; ++i)
      sum += load_element<T>(p.query.at(b, h, i, d), p.query.dtype);
  static_cast<T*>(p.scored_query.data)[at] = sum;
}

// A thread per column of a block of keys: their mean, of those that count.
template <class T>
__global__ void __launch_bounds__(kThreads)
    select_keys_kernel(const __grid_constant__ SelectCall p) {
  const int64_t at = thread_item(), d = at % p.D, block = at / p.D;
  const int64_t b = block / p.columns / p.Hkv, h = block / p.columns % p.Hkv;
  if (b >= p.B) return;
  const int64_t first = block % p.columns * p.block, end = min64(first + p.block, p.keys);
  T sum = 0;
  int32_t count = 0;
  for (int64_t j = first; j < end; ++j) {
    if (p.keep && !p.keep[b * p.keys + j]) continue;
    ++count;
    sum += load_element<T>(p.key.at(b, h, j, d), p.key.dtype);
  }
  static_cast<T*>(p.scored_key.data)[at] = sum * (T(1) / static_cast<T>(max64(count, 1)));
  if (d == 0) p.kept_keys[block] = count;
}

// A block makes the scores of 64 rows and 64 columns of one (b, h), if a row sees one of them.
template <class T>
__global__ void __launch_bounds__(kThreads)
    select_scores_kernel(const __grid_constant__ SelectCall p) {
  ATTN_SHARED(shared);
  auto& memory = *reinterpret_cast<TileMemory<T, 0>*>(shared);
  const int64_t column_tiles = tiles_over(p.columns, kTile);
  const int64_t row_tiles = tiles_over(p.row_count, kTile);
  const int64_t list = blockIdx.x / column_tiles / row_tiles;
  const int64_t b = list / p.score_heads(), h = list % p.score_heads();
  const int64_t c0 = blockIdx.x % column_tiles * kTile;
  const int64_t i0 = p.first_row + blockIdx.x / column_tiles % row_tiles * kTile;
  const int64_t end = min64(p.first_row + p.row_count, p.rows());
  if (i0 >= end || c0 >= p.seen_columns(min64(i0 + kTile, end) - 1)) return;
  const Rows query = rows_of(p.scored_query, b, h, end, p.D);
  const Rows key = rows_of(p.scored_key, b, h * p.Hkv / p.score_heads(), p.columns, p.D);
  T s[kMicro][kMicro];
  row_products(s, query, i0, key, c0, memory);
  ATTN_UNROLL
  for (int r = 0; r < kMicro; ++r) {
    const int64_t i = i0 + thread_row() * kMicro + r;
    T* row = static_cast<T*>(p.scores) + (list * p.row_count + i - p.first_row) * p.columns;
    ATTN_UNROLL
    for (int c = 0; c < kMicro; ++c) {
      const int64_t column = c0 + thread_column() * kMicro + c;
      if (i < end && column < p.columns) row[column] = s[r][c];
    }
  }
}

ATTN_DEVICE int bits_of(float value) { return static_cast<int>(float_to_bits(value)); }
ATTN_DEVICE int64_t bits_of(double value) {
  int64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// What one row of a list chooses: the work of a warp, whose lanes take every 32nd block.
template <class T>
class RowChoice {
  using Rank = decltype(bits_of(T()));
  static constexpr Rank kLowest = std::numeric_limits<Rank>::min();
  static constexpr Rank kHighest = std::numeric_limits<Rank>::max();
  static constexpr T kMinusInfinity = -std::numeric_limits<T>::infinity();

  const SelectCall& p_;
  const int64_t b_, head_, row_;  // of the list
  const int lane_;
  const int64_t visible_, own_;  // own_: the block of the row's first query
  T* const scores_;              // of blocks

 public:
  ATTN_DEVICE RowChoice(const SelectCall& p, int64_t list, int64_t row)
      : p_(p),
        b_(list / p.heads()),
        head_(list % p.heads()),
        row_(row),
        lane_(static_cast<int>(threadIdx.x) % 32),
        visible_(p.visible_blocks(row)),
        own_(p.position(row) < 0 ? -1 : p.position(row) / p.block),
        scores_(static_cast<T*>(p.block_scores) +
                (list * p.row_count + row - p.first_row) * p.blocks()) {}

  // The scores of the columns become those of the blocks: sums of probabilities.
  ATTN_DEVICE void sum_probabilities() const {
    for (int64_t n = lane_; n < visible_; n += 32) scores_[n] = 0;
    const Range heads = heads_of_list(p_, head_);
    for (int64_t h = heads.begin; h < heads.end; ++h) {
      T* columns = static_cast<T*>(p_.scores) +
                   ((b_ * p_.Hq + h) * p_.row_count + row_ - p_.first_row) * p_.columns;
      softmax(columns);
      __syncwarp();
      add_to_blocks(columns);
    }
  }

  // The fixed blocks and the best of the others, ascending, then -1. Of equal ones the first is
  // chosen.
  ATTN_DEVICE void choose(int32_t* out) const {
    Rank last = kLowest + 1;   // of those chosen
    int64_t equal = visible_;  // so many of this rank may still be
    int64_t count = 0;
    if (count_from(last) > p_.top_k) {
      last = rank_of_last();
      equal = p_.top_k - (last == kHighest ? 0 : count_from(last + 1));
    }
    const unsigned before = (1u << lane_) - 1;
    for (int64_t first = 0; first < visible_; first += 32) {
      const int64_t n = first + lane_;
      const Rank own = n < visible_ ? rank(n) : kLowest;
      const unsigned ties = __ballot_sync(kWholeWarp, own == last);
      const bool taken = own > last || (own == last && __popc(ties & before) < equal);
      const unsigned chosen = __ballot_sync(kWholeWarp, taken);
      if (taken) out[count + __popc(chosen & before)] = static_cast<int32_t>(n);
      count += __popc(chosen);
      equal = max64(equal - __popc(ties), 0);
    }
    for (int64_t n = count + lane_; n < p_.top_k; n += 32) out[n] = -1;
  }

 private:
  ATTN_DEVICE bool keeps(int64_t column) const {
    if (p_.compression) return !p_.keep || p_.keep[b_ * p_.keys + column];
    return p_.kept_keys[(b_ * p_.Hkv + head_ * p_.Hkv / p_.heads()) * p_.columns + column] > 0;
  }

  // The scores of the columns that the row sees become probabilities, 0 where no key counts.
  ATTN_DEVICE void softmax(T* s) const {
    const int64_t n = p_.seen_columns(row_);
    const T factor = static_cast<T>(p_.scale * 1.4426950408889634);  // log2(e)
    T top = kMinusInfinity, total = 0;
    for (int64_t c = lane_; c < n; c += 32) {
      s[c] = keeps(c) ? s[c] * factor : kMinusInfinity;
      top = std::fmax(top, s[c]);
    }
    top = warp_maximum(top);
    if (top == kMinusInfinity) top = 0;
    for (int64_t c = lane_; c < n; c += 32) total += s[c] = std::exp2(s[c] - top);
    total = warp_sum(total);
    const T scale = total > 0 ? T(1) / total : T(0);
    for (int64_t c = lane_; c < n; c += 32) s[c] *= scale;
  }

  // Each probability goes to the blocks of all strides that its key covers.
  ATTN_DEVICE void add_to_blocks(const T* probability) const {
    const int64_t n = p_.seen_columns(row_), strides = p_.block / p_.compression.stride;
    const int64_t covered = p_.compression.length / p_.compression.stride;
    for (int64_t block = lane_; block < visible_; block += 32) {
      const int64_t begin = block * strides;
      T sum = 0;
      for (int64_t shift = 0; shift < covered; ++shift)
        for (int64_t c = max64(0, begin - shift); c < min64(n, begin - shift + strides); ++c)
          sum += probability[c];
      scores_[block] += sum;
    }
  }

  // An integer in the order of the scores, NaN as -inf: the highest for fixed blocks, the lowest
  // for those that may not be chosen.
  ATTN_DEVICE Rank rank(int64_t n) const {
    if (n < p_.initial || (own_ - p_.local < n && n <= own_)) return kHighest;
    if (!p_.compression && !keeps(n)) return kLowest;
    const T score = scores_[n];
    const Rank bits = bits_of(score != score ? kMinusInfinity : score + T(0));  // there is one 0
    return bits < 0 ? bits ^ kHighest : bits;
  }

  ATTN_DEVICE int64_t count_from(Rank lowest) const {
    int count = 0;
    for (int64_t n = lane_; n < visible_; n += 32) count += rank(n) >= lowest;
    return warp_sum(count);
  }

  // Of more than top_k blocks that may be chosen, the rank of the last one chosen.
  ATTN_DEVICE Rank rank_of_last() const {
    Rank low = kLowest + 1, high = kHighest;  // as many or more from here on; from here on fewer
    if (count_from(high) >= p_.top_k) return high;
    while (low + 1 < high) {
      const Rank middle = (low & high) + ((low ^ high) >> 1);
      const int64_t count = count_from(middle);
      (count < p_.top_k ? high : low) = middle;
      if (count == p_.top_k) break;
    }
    return low;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    select_choice_kernel(const __grid_constant__ SelectCall p) {
  const int64_t warp = warp_item(), list = warp / p.row_count;
  const int64_t row = p.first_row + warp % p.row_count;
  if (list >= p.B * p.heads() || row >= p.rows()) return;
  const RowChoice<T> choice(p, list, row);
  if (p.compression) choice.sum_probabilities();
  choice.choose(p.indices + (list * p.rows() + row) * p.top_k);
}

template <class T>
void select_blocks(SelectCall p, Stream stream) {
  const int64_t lists = p.B * p.heads();
  if (p.sums_queries())
    launch(select_queries_kernel<T>, blocks_of_threads(lists * p.rows() * p.D), kThreads, 0, stream,
           p);
  if (!p.compression)
    launch(select_keys_kernel<T>, blocks_of_threads(p.B * p.Hkv * p.columns * p.D), kThreads, 0,
           stream, p);
  for (p.first_row = 0; p.first_row < p.rows(); p.first_row += p.row_count) {
    const int64_t tiles = tiles_over(p.row_count, kTile) * tiles_over(p.columns, kTile);
    launch(select_scores_kernel<T>, p.B * p.score_heads() * tiles, kThreads,
           sizeof(TileMemory<T, 0>), stream, p);
    launch(select_choice_kernel<T>, blocks_of_warps(lists * p.row_count), kThreads, 0, stream, p);
  }
}

}  // namespace attn::cuda
