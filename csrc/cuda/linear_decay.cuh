// The decays of one chunk in shared memory: a number for each token (TokenDecays) or one for each
// token and channel (ChannelDecays). All weights are products of factors of at most 1.
#pragma once

#include "cuda/linear_chunks.cuh"

namespace attn::cuda {

// Sums of log2 decays up to and with each token. In float a sum has two parts, so that differences
// of large ones keep their digits.
template <class Arithmetic>
class TokenDecays {
  using T = typename Arithmetic::Sum;
  static constexpr int kEdge = Arithmetic::kEdge;
  T high_[kEdge], low_[kEdge];

 public:
  static constexpr bool kChannel = false;

  // Of the tokens of a chunk; those behind it don't decay. Begins and ends with a barrier.
  ATTN_DEVICE void load(const LinearCall& p, const LinearChunk& chunk, int64_t hs, int64_t) {
    __syncthreads();
    if (threadIdx.x < 32) {
      double before = 0;
      for (int t = lane_in_warp(); t < kEdge; t += 32) {
        double sum = logarithm(p, chunk, hs, chunk.begin + t);
        ATTN_UNROLL
        for (int by = 1; by < 32; by *= 2) {
          const double other = __shfl_up_sync(kWholeWarp, sum, by);
          sum += lane_in_warp() >= by ? other : 0;
        }
        sum += before;
        before = __shfl_sync(kWholeWarp, sum, 31);
        high_[t] = static_cast<T>(sum);
        low_[t] = static_cast<T>(sum - high_[t]);
      }
    }
    __syncthreads();
  }

  // Between two tokens s <= t; from the chunk's beginning up to and with a token; from behind a
  // token to the chunk's end; over the chunk.
  ATTN_DEVICE T weight(int t, int s) const {
    return std::exp2((high_[t] - high_[s]) + (low_[t] - low_[s]));
  }
  ATTN_DEVICE T from_start(int t) const { return std::exp2(high_[t] + low_[t]); }
  ATTN_DEVICE T to_end(int s) const { return weight(kEdge - 1, s); }
  ATTN_DEVICE T total(int) const { return from_start(kEdge - 1); }

  // Of a tile's rows.
  ATTN_DEVICE void fade_from_start(ChunkTile<Arithmetic> tile) const {
    tile.transform([&](int t, int, T x) { return x * from_start(t); });
  }
  ATTN_DEVICE void fade_to_end(ChunkTile<Arithmetic> tile) const {
    tile.transform([&](int s, int, T x) { return x * to_end(s); });
  }

 private:
  static ATTN_DEVICE double logarithm(const LinearCall& p, const LinearChunk& chunk, int64_t hs,
                                      int64_t i) {
    if (!p.decay || i >= chunk.live) return 0;
    constexpr double kLog2e = 1.4426950408889634;
    const double x = load_element<double>(p.decay.at(chunk.b, hs, i), p.decay.dtype) * kLog2e;
    return x < -1e6 ? -1e6 : x;
  }
};

// Tokens go in groups of 16. A pair of two groups is weighed by way of the borders between them, in
// a product; a pair of one group by itself, channel by channel.
template <class Arithmetic>
class ChannelDecays {
  using T = typename Arithmetic::Sum;
  using Tile = ChunkTile<Arithmetic>;
  static constexpr int kEdge = Arithmetic::kEdge, kThreads = Arithmetic::kThreads;
  static constexpr int kGroup = 16, kGroups = kEdge / kGroup;
  T keep_[kEdge][kEdge + 1];  // exp(g) of token and channel
  T total_[kGroups][kEdge];   // the product over a group

 public:
  static constexpr bool kChannel = true;
  static constexpr int kPairRows = kGroups * (kGroups - 1) / 2 * kGroup;
  using Scores = T[kEdge][kGroup];  // of pairs of one group: query, key in the group

  // Of edge channels from d0 on. Begins and ends with a barrier.
  ATTN_DEVICE void load(const LinearCall& p, const LinearChunk& chunk, int64_t hs, int64_t d0) {
    const Rows rows = rows_of(p.decay, chunk.b, hs, chunk.live, p.D);
    __syncthreads();
    ATTN_ROLLED
    for (int e = static_cast<int>(threadIdx.x); e < kEdge * kEdge; e += kThreads)
      keep_[e / kEdge][e % kEdge] = std::exp(rows.load<T>(chunk.begin + e / kEdge, d0 + e % kEdge));
    __syncthreads();
    for_each_column([&](int group, int d) {
      T product = 1;
      ATTN_ROLLED
      for (int t = group * kGroup; t < (group + 1) * kGroup; ++t) product *= keep_[t][d];
      total_[group][d] = product;
    });
    __syncthreads();
  }

  // Over the groups before one, after one, and all.
  ATTN_DEVICE T before(int group, int d) const { return product(0, group, d); }
  ATTN_DEVICE T after(int group, int d) const { return product(group + 1, kGroups, d); }
  ATTN_DEVICE T total(int d) const { return product(0, kGroups, d); }

  // Of a tile [token][channel], in each group from its beginning, from the chunk's beginning, and
  // to the chunk's end.
  ATTN_DEVICE void fade_in_groups(Tile tile) const {
    for_each_column([&](int group, int d) { fade_up(tile, group, d, 1); });
  }
  ATTN_DEVICE void fade_from_start(Tile tile) const {
    for_each_column([&](int group, int d) { fade_up(tile, group, d, before(group, d)); });
  }
  ATTN_DEVICE void fade_to_end(Tile tile) const {
    for_each_column([&](int group, int d) {
      T weight = after(group, d);
      ATTN_ROLLED
      for (int s = (group + 1) * kGroup - 1; s >= group * kGroup; --s) {
        tile.set(s, d, tile.get(s, d) * weight);
        weight *= keep_[s][d];
      }
    });
  }

  // The row of `pairs` where the keys (or queries) of a pair of groups begin.
  static ATTN_DEVICE int pair_row(int query_group, int key_group) {
    return (query_group * (query_group - 1) / 2 + key_group) * kGroup;
  }
  // Keys faded up to the beginning of each later group.
  ATTN_DEVICE void fade_keys(Tile pairs, Tile keys) const {
    for_each_column([&](int group, int d) {
      T weight = 1;
      ATTN_ROLLED
      for (int s = kGroup - 1; s >= 0; --s) {
        T x = keys.get(group * kGroup + s, d) * weight;
        for (int later = group + 1; later < kGroups; ++later) {
          pairs.set(pair_row(later, group) + s, d, x);
          x *= total_[later][d];
        }
        weight *= keep_[group * kGroup + s][d];
      }
    });
  }
  // Queries faded from the end of each earlier group.
  ATTN_DEVICE void fade_queries(Tile pairs, Tile queries) const {
    for_each_column([&](int group, int d) {
      T weight = 1;
      ATTN_ROLLED
      for (int t = 0; t < kGroup; ++t) {
        weight *= keep_[group * kGroup + t][d];
        T x = queries.get(group * kGroup + t, d) * weight;
        for (int earlier = group - 1; earlier >= 0; --earlier) {
          pairs.set(pair_row(group, earlier) + t, d, x);
          x *= total_[earlier][d];
        }
      }
    });
  }

  // scores += the products of the pairs t >= s of one group, from rows as they are.
  ATTN_DEVICE void add_group_scores(Scores& scores, Tile queries, Tile keys) const {
    constexpr int kSlices = kThreads / kEdge;
    const int s = static_cast<int>(threadIdx.x) / kSlices;
    const int slice = static_cast<int>(threadIdx.x) % kSlices;
    ATTN_ROLLED
    for (int first = slice; first < kEdge; first += kFaded * kSlices)
      add_faded_key(scores, queries, keys, s, first);
  }

  // weight * x + the sum over the earlier tokens of t's group, of weights[t][s] keys[s], all faded
  // to t; the weight is that from the group's beginning.
  ATTN_DEVICE T add_earlier(int t, int d, T x, Tile weights, Tile keys) const {
    T weight = 1, sum = 0;
    const int begin = t / kGroup * kGroup;
    ATTN_ROLLED
    for (int s = t - 1; s >= begin; --s) {
      weight *= keep_[s + 1][d];
      sum += weights.get(t, s) * (keys.get(s, d) * weight);
    }
    return weight * keep_[begin][d] * x + sum;
  }
  // The sum over the later tokens of s's group of weights[t][s] queries[t] faded from s.
  ATTN_DEVICE T later_sum(int s, int d, Tile weights, Tile queries) const {
    T weight = 1, sum = 0;
    ATTN_ROLLED
    for (int t = s + 1; t < (s / kGroup + 1) * kGroup; ++t) {
      weight *= keep_[t][d];
      sum += weights.get(t, s) * (queries.get(t, d) * weight);
    }
    return sum;
  }
  // From behind s to its group's end.
  ATTN_DEVICE T to_group_end(int s, int d) const {
    T weight = 1;
    ATTN_ROLLED
    for (int t = s + 1; t < (s / kGroup + 1) * kGroup; ++t) weight *= keep_[t][d];
    return weight;
  }

 private:
  // The columns of a key that a thread fades at once: more don't stay in registers.
  static constexpr int kFaded = kEdge / (kThreads / kEdge) < 16 ? kEdge / (kThreads / kEdge) : 16;

  // The share of kFaded columns from `first` on, of every key's lanes, in the scores of key s.
  ATTN_DEVICE void add_faded_key(Scores& scores, Tile queries, Tile keys, int s, int first) const {
    constexpr int kSlices = kThreads / kEdge;
    T faded[kFaded];
    ATTN_UNROLL
    for (int n = 0; n < kFaded; ++n) faded[n] = keys.get(s, first + n * kSlices);
    ATTN_ROLLED
    for (int t = s / kGroup * kGroup; t < (s / kGroup + 1) * kGroup; ++t) {
      T sum = 0;
      ATTN_UNROLL
      for (int n = 0; n < kFaded; ++n) {
        if (t > s) faded[n] *= keep_[t][first + n * kSlices];
        if (t >= s) sum += faded[n] * queries.get(t, first + n * kSlices);
      }
      ATTN_UNROLL
      for (int by = 1; by < kSlices; by *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, by);
      if (threadIdx.x % kSlices == 0 && t >= s) scores[t][s % kGroup] += sum;
    }
  }

  template <class F>
  static ATTN_DEVICE void for_each_column(F f) {
    ATTN_ROLLED
    for (int e = static_cast<int>(threadIdx.x); e < kGroups * kEdge; e += kThreads)
      f(e / kEdge, e % kEdge);
  }
  ATTN_DEVICE T product(int first, int last, int d) const {
    T result = 1;
    for (int group = first; group < last; ++group) result *= total_[group][d];
    return result;
  }
  ATTN_DEVICE void fade_up(Tile tile, int group, int d, T weight) const {
    ATTN_ROLLED
    for (int t = group * kGroup; t < (group + 1) * kGroup; ++t) {
      weight *= keep_[t][d];
      tile.set(t, d, tile.get(t, d) * weight);
    }
  }
};

template <class Arithmetic, bool kChannel>
using Decays = std::conditional_t<kChannel, ChannelDecays<Arithmetic>, TokenDecays<Arithmetic>>;

// scores[t][s] += queries[t] . pairs[s], for keys of earlier groups than the query's. Queries are
// faded in groups, and pairs are those of fade_keys.
template <class T>
ATTN_DEVICE void add_pair_scores(ChunkSum<PlainArithmetic<T>>& scores,
                                 ChunkTile<PlainArithmetic<T>> queries,
                                 ChunkTile<PlainArithmetic<T>> pairs, int depth) {
  using Sum = ChunkSum<PlainArithmetic<T>>;
  const int group = Sum::row_group();
  for (int k = 0; k < depth; ++k) {
    ATTN_UNROLL
    for (int c = 0; c < Sum::kMicro; ++c) {
      if (c >= group) break;
      const int row = ChannelDecays<PlainArithmetic<T>>::pair_row(group, c) + thread_column();
      const T key = pairs.get(row, k);
      ATTN_UNROLL
      for (int r = 0; r < Sum::kMicro; ++r) scores.value[r][c] += queries.get(Sum::row(r), k) * key;
    }
  }
}

template <Dtype kDtype>
ATTN_DEVICE void add_pair_scores(ChunkSum<TensorArithmetic<kDtype>>& scores,
                                 ChunkTile<TensorArithmetic<kDtype>> queries,
                                 ChunkTile<TensorArithmetic<kDtype>> pairs, int depth) {
  using Sum = ChunkSum<TensorArithmetic<kDtype>>;
  const int group = Sum::row_group();
  const auto query_chunks = rows_of_lane(queries.shared(), group * 16);
  for (int k = 0; k < depth; k += 16) {
    uint32_t left[4], right[4];
    load_matrices(left, query_chunks.away(0, k));
    ATTN_UNROLL
    for (int earlier = 0; earlier < Sum::kTiles / 2; ++earlier) {
      if (earlier >= group) break;
      const int row = ChannelDecays<TensorArithmetic<kDtype>>::pair_row(group, earlier);
      load_matrices(right, columns_of_lane(pairs.shared(), row).away(0, k));
      add_products<kDtype>(scores.value[0][2 * earlier], scores.value[0][2 * earlier + 1], left,
                           right);
    }
  }
}

}  // namespace attn::cuda
