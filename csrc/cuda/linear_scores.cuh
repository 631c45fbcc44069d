// What the kernels of one chunk of linear attention share: their memory, the products of its pairs,
// and sums over them.
#pragma once

#include "cuda/linear_decay.cuh"

namespace attn::cuda {

// What the kernels of one chunk share, in shared memory: two tiles, a third one or pairs of decays
// of each channel, decays, and numbers of each row.
template <class Arithmetic, bool kChannel>
struct ChunkMemory {
  using T = typename Arithmetic::Sum;
  using Tile = ChunkTile<Arithmetic>;
  using OwnDecays = Decays<Arithmetic, kChannel>;
  static constexpr int kEdge = Arithmetic::kEdge;

  static constexpr ATTN_HD int third_rows() {
    if constexpr (kChannel) return OwnDecays::kPairRows > kEdge ? OwnDecays::kPairRows : kEdge;
    return kEdge;
  }
  static constexpr size_t kFirst = 0, kSecond = Tile::bytes(), kThird = 2 * Tile::bytes();
  static constexpr size_t kDecays = kThird + Tile::bytes(third_rows());
  static constexpr size_t kGroupScores = kDecays + sizeof(OwnDecays);
  static constexpr size_t kRows = kGroupScores + (kChannel ? sizeof(T) * kEdge * 16 : 0);
  static constexpr size_t kBytes = kRows + 3 * kEdge * sizeof(T);

  Tile first, second, third;
  OwnDecays& decays;
  T (&group_scores)[kEdge][16];  // with decays of each channel only
  T *factor, *delta, *diagonal;  // of each row

  ATTN_DEVICE explicit ChunkMemory(unsigned char* shared)
      : first(shared + kFirst),
        second(shared + kSecond),
        third(shared + kThird),
        decays(*reinterpret_cast<OwnDecays*>(shared + kDecays)),
        group_scores(*reinterpret_cast<T (*)[kEdge][16]>(shared + kGroupScores)),
        factor(reinterpret_cast<T*>(shared + kRows)),
        delta(factor + kEdge),
        diagonal(delta + kEdge) {}
};

// scores[t][s] = w_ts q_t . k_s for s <= t, else 0. Uses all three tiles, and for decays of each
// channel loads them; those of tokens have been loaded. Begins with a barrier.
template <class Arithmetic, bool kChannel>
ATTN_DEVICE void make_scores(ChunkSum<Arithmetic>& scores, const LinearCall& p,
                             const LinearChunk& chunk, int64_t h,
                             const ChunkMemory<Arithmetic, kChannel>& memory) {
  using T = typename Arithmetic::Sum;
  constexpr int kEdge = Arithmetic::kEdge;
  const int64_t hs = h / p.group();
  const Rows queries = query_rows(p, chunk.b, h, chunk.live);
  const Rows keys = key_rows(p, chunk.b, hs, chunk.live);
  scores.clear();
  if constexpr (kChannel) {
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < kEdge * 16; e += Arithmetic::kThreads)
      memory.group_scores[e / 16][e % 16] = 0;
  }
  for (int64_t d0 = 0; d0 < p.D; d0 += kEdge) {
    __syncthreads();
    memory.first.load(queries, chunk.begin, d0);
    memory.second.load(keys, chunk.begin, d0);
    if constexpr (kChannel) memory.decays.load(p, chunk, hs, d0);
    memory.first.wait();
    __syncthreads();
    const Depth depth = depth_from(d0, p.D, kEdge);
    if constexpr (kChannel) {
      memory.decays.add_group_scores(memory.group_scores, memory.first, memory.second);
      memory.decays.fade_keys(memory.third, memory.second);
      __syncthreads();
      memory.decays.fade_in_groups(memory.first);
      __syncthreads();
      add_pair_scores(scores, memory.first, memory.third, depth.depth);
    } else {
      add_product<false, true>(scores, memory.first, memory.second, depth);
    }
  }
  __syncthreads();
  scores.for_each([&](int t, int s, T& x) {
    if constexpr (kChannel)
      x = t / 16 == s / 16 && s <= t ? memory.group_scores[t][s % 16] : s < t ? x : T(0);
    else
      x = s > t ? T(0) : p.decay ? x * memory.decays.weight(t, s) : x;
  });
}

// products[t][s] += grad_out_t . v_s, by way of `first` and `second`. Begins with a barrier.
template <class Arithmetic, bool kChannel>
ATTN_DEVICE void add_value_products(ChunkSum<Arithmetic>& products, const LinearCall& p,
                                    const LinearChunk& chunk, int64_t h,
                                    const ChunkMemory<Arithmetic, kChannel>& memory) {
  constexpr int kEdge = Arithmetic::kEdge;
  const Rows grads = rows_of(p.grad_out, chunk.b, h, chunk.live, p.Dv);
  const Rows values = value_rows(p, chunk.b, h / p.group(), chunk.live);
  for (int64_t c0 = 0; c0 < p.Dv; c0 += kEdge) {
    __syncthreads();
    memory.first.load(grads, chunk.begin, c0);
    memory.second.load(values, chunk.begin, c0);
    memory.first.wait();
    __syncthreads();
    add_product<false, true>(products, memory.first, memory.second, depth_from(c0, p.Dv, kEdge));
  }
}

// sum += weights (or their transpose) times rows of a chunk, where weights are 0 unless key <=
// query: where a row isn't finite, only pairs that count are multiplied. Weights go through
// `first`, rows through `second`, which no thread reads any more; holds a barrier between writing
// and reading.
template <bool kTranspose, class Arithmetic, bool kChannel>
ATTN_DEVICE void add_weighted(ChunkSum<Arithmetic>& sum, ChunkSum<Arithmetic>& weights,
                              const Rows& rows, int64_t begin, int64_t column0,
                              const ChunkMemory<Arithmetic, kChannel>& memory) {
  weights.store(memory.first);
  memory.second.load(rows, begin, column0);
  memory.second.wait();
  if (__syncthreads_or(!memory.second.is_finite()))
    add_triangle<kTranspose>(sum, memory.first, memory.second);
  else
    add_product<kTranspose, false>(sum, memory.first, memory.second, {Arithmetic::kEdge});
}

// A block's share of query_terms or key_terms, of the head h of `heads`.
template <bool kChannel, class Arithmetic>
ATTN_DEVICE void store_decay_terms(ChunkSum<Arithmetic>& terms, const LinearCall& p,
                                   const LinearChunk& chunk, void* to, int64_t heads, int64_t h,
                                   int64_t d0) {
  using T = typename Arithmetic::Sum;
  const int64_t columns = kChannel ? p.D : p.blocks_of(p.D);
  T* rows = static_cast<T*>(to) + ((chunk.b * heads + h) * p.Lk + chunk.begin) * columns;
  const int64_t live = chunk.live - chunk.begin;
  if constexpr (kChannel)
    terms.for_each([&](int t, int d, T x) {
      if (t < live && d0 + d < p.D) rows[t * columns + d0 + d] = x;
    });
  else
    terms.for_each_row_sum([&](int t, T sum) {
      if (t < live) rows[t * columns + d0 / Arithmetic::kEdge] = sum;
    });
}

}  // namespace attn::cuda
