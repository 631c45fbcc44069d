// Attention forward: a block computes 64 queries of one head, and 16 * N columns of their output,
// with the online softmax of csrc/README.md over tiles of 64 keys.
#pragma once

#include "cuda/attention_scores.cuh"

namespace attn::cuda {

// The softmax of 64 queries over their keys; a thread holds 4 rows, as its 15 neighbours do, and N
// columns of the weighted sum of values. N = 0: only maximum and sum.
template <class T, int N>
struct OnlineSoftmax {
  using Memory = TileMemory<T, N>;

  T maximum[kMicro], sum[kMicro];
  T out[kMicro][N > 0 ? N : 1];

  template <class Head>
  ATTN_DEVICE OnlineSoftmax(const Head& head, int64_t i0, int64_t column0, Memory& memory) {
    const AttentionCall& p = head.p;
    const T sink = head.sink();
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      maximum[r] = sink;
      sum[r] = sink == -infinity<T>() ? 0 : 1;
    }
    set_zero(out);
    const Rows value = rows_of(p.value, head.b, head.h / p.group(), p.Lk, p.Dv);
    const Range keys = head.keys_of_tile(i0);
    for (int64_t j0 = head.next_keys(i0, keys.begin); j0 < keys.end;
         j0 = head.next_keys(i0, j0 + kTile)) {
      const TileKind kind = head.map_tile(i0, j0, memory);
      if (kind == TileKind::kSkip) continue;
      T s[kMicro][kMicro], unused[kMicro][kMicro];
      row_products(s, head.query, i0, head.key, j0, memory);
      head.scores(s, unused, i0, j0, kind, memory);
      add_tile(head, s, i0, j0, memory);
      if constexpr (N > 0)
        add_weighted_rows<T, N, SumOver::kKeys>(out, head.seen_maps(kind, memory), value, j0,
                                                column0, memory);
      else
        __syncthreads();  // the maps have been read
    }
  }

  ATTN_DEVICE T result(int r, int c, T keep_scale) const {
    return sum[r] == 0 ? T(0) : out[r][c] * keep_scale / sum[r];
  }
  ATTN_DEVICE T lse(int r) const {
    if (sum[r] == 0) return -infinity<T>();
    return maximum[r] == infinity<T>() ? maximum[r] : maximum[r] + std::log(sum[r]);
  }

  // The tile's share of maximum and sum; its weights go to memory.
  template <class Head>
  ATTN_DEVICE void add_tile(const Head& head, const T (&s)[kMicro][kMicro], int64_t i0, int64_t j0,
                            Memory& memory) {
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      T top = maximum[r];
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c) top = std::fmax(top, s[r][c]);
      top = across_columns(top, [](T x, T y) { return std::fmax(x, y); });
      const T base = top == -infinity<T>() ? 0 : top;
      const T shrink = maximum[r] == top ? 1 : std::exp(maximum[r] - base);
      const uint32_t kept = head.kept(i0 + thread_row() * kMicro + r, j0);
      T added = 0;
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c) {
        const T weight = std::exp(s[r][c] - base);
        added += weight;
        if constexpr (N > 0)
          memory.weights[(thread_column() * kMicro + c) * kPitch + thread_row() * kMicro + r] =
              kept >> c & 1 ? weight : T(0);
      }
      added = across_columns(added, [](T x, T y) { return x + y; });
      sum[r] = sum[r] * shrink + added;
      maximum[r] = top;
      ATTN_UNROLL
      for (int c = 0; c < N; ++c) out[r][c] *= shrink;
    }
  }
};

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    attention_forward_kernel(const __grid_constant__ AttentionCall p) {
  ATTN_SHARED(shared);
  auto& memory = *reinterpret_cast<TileMemory<T, N>*>(shared);
  const int64_t tiles = tiles_over(p.Lq, kTile), slices = max64(1, tiles_over(p.Dv, N * kSide));
  int64_t item = blockIdx.x;
  const int64_t column0 = item % slices * N * kSide;
  item /= slices;
  const int64_t i0 = (tiles - 1 - item % tiles) * kTile;  // causal: the longest rows come first
  item /= tiles;
  const HeadScores<T> head(p, item / p.Hq, item % p.Hq);
  const OnlineSoftmax<T, N> softmax(head, i0, column0, memory);
  const T keep_scale = static_cast<T>(head.dropout.keep_scale);
  ATTN_UNROLL
  for (int r = 0; r < kMicro; ++r) {
    const int64_t i = i0 + thread_row() * kMicro + r;
    if (i >= p.Lq) continue;
    ATTN_UNROLL
    for (int c = 0; c < N; ++c) {
      const int64_t column = column0 + c * kSide + thread_column();
      if (column < p.Dv)
        store_element(p.out.at(head.b, head.h, i, column), p.out.dtype,
                      softmax.result(r, c, keep_scale));
    }
    if (column0 == 0 && thread_column() == 0)
      store_element(p.lse.at(head.b, head.h, i), p.lse.dtype, softmax.lse(r));
  }
}

template <class T, int N>
void launch_attention_forward(const AttentionCall& p, Stream stream) {
  const int64_t blocks =
      p.B * p.Hq * tiles_over(p.Lq, kTile) * max64(1, tiles_over(p.Dv, N * kSide));
  launch(attention_forward_kernel<T, N>, blocks, kThreads, sizeof(TileMemory<T, N>), stream, p);
}

template <class T>
void attention_forward(const AttentionCall& p, Stream stream) {
  if (p.splits.count > 0) return attention_splits<T>(p, stream);
  const Dtype dtype = p.query.dtype;
  if (dtype == Dtype::kFloat16 && attention_tensor_forward<Dtype::kFloat16>(p, stream)) return;
  if (dtype == Dtype::kBFloat16 && attention_tensor_forward<Dtype::kBFloat16>(p, stream)) return;
  if (p.Dv <= 4 * kSide)
    launch_attention_forward<T, 4>(p, stream);
  else
    launch_attention_forward<T, 8>(p, stream);
}

}  // namespace attn::cuda
