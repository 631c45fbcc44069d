// The gradients of bias, sinks and ALiBi slopes: reduced to their own shapes, in a fixed order.
#pragma once

#include "cuda/attention_gradients.cuh"

namespace attn::cuda {

// How a bias gradient is cut: along each of batch, heads, query tiles and key tiles, what a block
// owns (the bias varies) or sums over (it is broadcast).
struct BiasGrid {
  int64_t own[4], summed[4];

  ATTN_HD explicit BiasGrid(const AttentionGradParams& p) {
    const int64_t full[4] = {p.B, p.Hq, tiles_over(p.Lq, kTile), tiles_over(p.Lk, kTile)};
    for (int d = 0; d < 4; ++d) {
      const bool varies = p.bias_size[d] > 1;
      own[d] = varies ? full[d] : 1;
      summed[d] = varies ? 1 : full[d];
    }
  }
  static ATTN_HD int64_t product(const int64_t (&n)[4]) { return n[0] * n[1] * n[2] * n[3]; }
  static ATTN_HD void decode(int64_t index, const int64_t (&sizes)[4], int64_t (&at)[4]) {
    for (int d = 3; d >= 0; --d) at[d] = index % sizes[d], index /= sizes[d];
  }
};

// Writes what a block has summed: one element per row and column that the bias varies over.
template <class T>
ATTN_DEVICE void store_bias_tile(const AttentionCall& p, T (&sums)[kMicro][kMicro],
                                 const int64_t (&own)[4], int64_t slot, T* tile) {
  const bool rows_vary = p.bias_size[2] > 1, columns_vary = p.bias_size[3] > 1;
  ATTN_UNROLL
  for (int r = 0; r < kMicro; ++r) {
    if (!columns_vary)
      sums[r][0] = across_columns(sums[r][0] + sums[r][1] + sums[r][2] + sums[r][3],
                                  [](T x, T y) { return x + y; });
    ATTN_UNROLL
    for (int c = 0; c < kMicro; ++c)
      tile[(thread_row() * kMicro + r) * kPitch + thread_column() * kMicro + c] = sums[r][c];
  }
  __syncthreads();
  const int rows = rows_vary ? kTile : 1, columns = columns_vary ? kTile : 1;
  for (int e = static_cast<int>(threadIdx.x); e < rows * columns; e += kThreads) {
    const int64_t i = own[2] * kTile + e / columns, j = own[3] * kTile + e % columns;
    if (i >= p.bias_size[2] || j >= p.bias_size[3]) continue;
    T sum = 0;
    const int first = rows_vary ? e / columns : 0, end = rows_vary ? first + 1 : kTile;
    for (int row = first; row < end; ++row) sum += tile[row * kPitch + e % columns];
    const int64_t* size = p.bias_size;
    const int64_t at = ((own[0] * size[1] + own[1]) * size[2] + i) * size[3] + j;
    if (p.plan.bias_slots > 1)
      static_cast<T*>(p.dbias_partial)[slot * size[0] * size[1] * size[2] * size[3] + at] = sum;
    else
      store_element(static_cast<char*>(p.dbias.data) + at * size_of(p.dbias.dtype), p.dbias.dtype,
                    sum);
  }
}

// A block owns a tile of the bias and takes every bias_slots-th of the score tiles that add to it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_bias_kernel(const __grid_constant__ AttentionCall p) {
  ATTN_SHARED(shared);
  auto& memory = *reinterpret_cast<TileMemory<T, 4>*>(shared);
  const BiasGrid grid(p);
  const int64_t slot = blockIdx.x % p.plan.bias_slots, tiles = BiasGrid::product(grid.summed);
  int64_t own[4], at[4];
  BiasGrid::decode(blockIdx.x / p.plan.bias_slots, grid.own, own);
  T sums[kMicro][kMicro];
  set_zero(sums);
  for (int64_t tile = slot; tile < tiles; tile += p.plan.bias_slots) {
    BiasGrid::decode(tile, grid.summed, at);
    const HeadGradients<T> head(p, own[0] + at[0], own[1] + at[1]);
    const int64_t i0 = (own[2] + at[2]) * kTile, j0 = (own[3] + at[3]) * kTile;
    const TileKind kind = head.map_tile(i0, j0, memory);
    if (kind == TileKind::kSkip) continue;
    T weights[kMicro][kMicro], ds[kMicro][kMicro], dx[kMicro][kMicro];
    head.template tile<true>(weights, ds, dx, i0, j0, kind, memory);
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c) sums[r][c] += ds[r][c];
    }
    __syncthreads();  // the maps have been read
  }
  store_bias_tile(p, sums, own, slot, memory.weights);
}

// One thread per element of the bias adds its slots.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_bias_sum_kernel(const __grid_constant__ AttentionCall p) {
  const int64_t n = BiasGrid::product(p.bias_size);
  const int64_t at = thread_item();
  if (at >= n) return;
  T sum = 0;
  for (int64_t slot = 0; slot < p.plan.bias_slots; ++slot)
    sum += static_cast<const T*>(p.dbias_partial)[slot * n + at];
  store_element(static_cast<char*>(p.dbias.data) + at * size_of(p.dbias.dtype), p.dbias.dtype, sum);
}

// One thread per head, or per head and batch row: out = the sum of partial[b][h][0 .. parts - 1].
ATTN_DEVICE void sum_heads(const AttentionCall& p, const View& out, const double* partial,
                           int64_t parts, bool per_batch) {
  const int64_t at = thread_item();
  if (at >= p.Hq * (per_batch ? p.B : 1)) return;
  const int64_t h = at % p.Hq, first = at / p.Hq, end = per_batch ? first + 1 : p.B;
  double sum = 0;
  for (int64_t b = first; b < end; ++b)
    for (int64_t part = 0; part < parts; ++part) sum += partial[(b * p.Hq + h) * parts + part];
  store_element(out.at(first, h, 0), out.dtype, sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_heads_kernel(const __grid_constant__ AttentionCall p) {
  if (p.dsinks) sum_heads(p, p.dsinks, p.sink_partial, p.plan.row_blocks, false);
  if (p.dalibi_slopes)
    sum_heads(p, p.dalibi_slopes, p.alibi_partial, p.plan.chunks, p.alibi_per_batch);
}

template <class T>
void launch_term_gradients(const AttentionCall& p, Stream stream) {
  if (p.dbias) {
    const BiasGrid grid(p);
    launch(attention_backward_bias_kernel<T>, BiasGrid::product(grid.own) * p.plan.bias_slots,
           kThreads, sizeof(TileMemory<T, 4>), stream, p);
    if (p.plan.bias_slots > 1)
      launch(attention_backward_bias_sum_kernel<T>,
             blocks_of_threads(BiasGrid::product(p.bias_size)), kThreads, 0, stream, p);
  }
  if (p.dsinks || p.dalibi_slopes)
    launch(attention_backward_heads_kernel<T>, blocks_of_threads(max64(p.B, 1) * p.Hq), kThreads, 0,
           stream, p);
}

}  // namespace attn::cuda
