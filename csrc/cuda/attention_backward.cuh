// Attention backward: row statistics, then dq by tiles of queries and dk, dv by tiles of keys, each
// from the scores anew. Every element is summed by one thread in a fixed order.
#pragma once

#include "cuda/attention_backward_terms.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/attention_gradients.cuh"

namespace attn::cuda {

// From here on the rounding of lse shows in the weights: exp(s - lse) may be off by 0.4 % (float).
template <class T>
constexpr T kLargeLse = sizeof(T) == 8 ? T(1e14) : T(65536);

template <class T>
ATTN_DEVICE bool is_finite(T x) {
  return x - x == 0;
}

template <class T>
ATTN_DEVICE bool is_large_lse(T lse) {
  return is_finite(lse) && std::fabs(lse) >= kLargeLse<T>;
}

template <class T>
struct RowsMemory : TileMemory<T, 0> {
  double sinks[kTile];
};

// lse in two parts, delta, and the sums of the sinks' gradients, for 64 rows of a head.
template <class T>
struct RowStatistics {
  const HeadScores<T> head;
  const AttentionCall& p;
  const int64_t i0;
  RowsMemory<T>& memory;
  T *lse, *lse_low, *delta;

  ATTN_DEVICE RowStatistics(const AttentionCall& call, int64_t b, int64_t h, int64_t first,
                            RowsMemory<T>& shared)
      : head(call, b, h),
        p(call),
        i0(first),
        memory(shared),
        lse(static_cast<T*>(p.row_lse) + (b * p.Hq + h) * p.Lq),
        lse_low(lse + p.B * p.Hq * p.Lq),
        delta(static_cast<T*>(p.row_delta) + (b * p.Hq + h) * p.Lq) {}

  ATTN_DEVICE T given_lse(int64_t i) const {
    return load_element<T>(p.lse.at(head.b, head.h, i), p.lse.dtype);
  }

  // A non-finite dout that meets an output of 0, as that of an empty row is, counts as 0.
  ATTN_DEVICE T row_delta(int64_t i) const {
    T sum = 0;
    for (int64_t d = threadIdx.x % 32; d < p.Dv; d += 32) {
      const T out = load_element<T>(p.out.at(head.b, head.h, i, d), p.out.dtype);
      const T dout = load_element<T>(p.grad_out.at(head.b, head.h, i, d), p.grad_out.dtype);
      if (out != 0 || is_finite(dout)) sum += dout * out;
    }
    sum = warp_sum(sum);
    return p.grad_lse ? sum - load_element<T>(p.grad_lse.at(head.b, head.h, i), p.grad_lse.dtype)
                      : sum;
  }

  // Returns whether some lse is too coarse. The weights exp(s - lse) of an empty row become 0.
  ATTN_DEVICE bool run() {
    bool large = false;
    for (int64_t i = i0 + threadIdx.x / 32; i < min64(p.Lq, i0 + kTile); i += kThreads / 32) {
      const T value = given_lse(i), row = row_delta(i);
      large |= is_large_lse(value);
      if (threadIdx.x % 32 != 0) continue;
      lse[i] = value == -infinity<T>() ? infinity<T>() : value;
      lse_low[i] = 0;
      delta[i] = row;
    }
    return __syncthreads_or(large);
  }

  ATTN_DEVICE void split_large() {
    const OnlineSoftmax<T, 0> softmax(head, i0, 0, memory);
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      const int64_t i = i0 + thread_row() * kMicro + r;
      if (thread_column() != 0 || i >= p.Lq || !is_large_lse(given_lse(i))) continue;
      lse[i] = softmax.maximum[r];
      lse_low[i] = std::log(softmax.sum[r]);
    }
    __syncthreads();
  }

  ATTN_DEVICE void sum_sinks(double* result) {
    const double sink = load_element<double>(p.sinks.at(0, head.h, 0), p.sinks.dtype);
    const int64_t i = i0 + threadIdx.x;
    if (threadIdx.x < kTile)
      memory.sinks[threadIdx.x] = i < p.Lq && sink != -infinity<double>()
                                      ? -std::exp(sink - lse[i] - lse_low[i]) * delta[i]
                                      : 0.0;
    __syncthreads();
    if (threadIdx.x != 0) return;
    double sum = 0;
    for (int row = 0; row < kTile; ++row) sum += memory.sinks[row];
    *result = sum;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_rows_kernel(const __grid_constant__ AttentionCall p) {
  ATTN_SHARED(shared);
  const int64_t item = blockIdx.x, tiles = p.plan.row_blocks, bh = item / tiles;
  RowStatistics<T> rows(p, bh / p.Hq, bh % p.Hq, item % tiles * kTile,
                        *reinterpret_cast<RowsMemory<T>*>(shared));
  if (rows.run()) rows.split_large();
  if (p.dsinks) rows.sum_sinks(p.sink_partial + item);
}

// 64 queries of a head, 16 * N columns of dq; the first block of columns also sums the ALiBi
// slope's gradient.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    attention_backward_query_kernel(const __grid_constant__ AttentionCall p) {
  ATTN_SHARED(shared);
  auto& memory = *reinterpret_cast<TileMemory<T, N>*>(shared);
  const int64_t tiles = p.plan.chunks, slices = p.dq ? tiles_over(p.D, N * kSide) : 1;
  int64_t item = blockIdx.x;
  const int64_t column0 = item % slices * N * kSide;
  item /= slices;
  const int64_t tile = tiles - 1 - item % tiles, i0 = tile * kTile, bh = item / tiles;
  const HeadGradients<T> head(p, bh / p.Hq, bh % p.Hq);
  T dq[kMicro][N];
  set_zero(dq);
  double slope = 0;
  const Range keys = head.keys_of_tile(i0);
  for (int64_t j0 = head.next_keys(i0, keys.begin); j0 < keys.end;
       j0 = head.next_keys(i0, j0 + kTile)) {
    const TileKind kind = head.map_tile(i0, j0, memory);
    if (kind == TileKind::kSkip) continue;
    T weights[kMicro][kMicro], ds[kMicro][kMicro], dx[kMicro][kMicro];
    head.template tile<true>(weights, ds, dx, i0, j0, kind, memory);
    T tile_slope = 0;
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c) {
        const int row = thread_row() * kMicro + r, column = thread_column() * kMicro + c;
        memory.weights[column * kPitch + row] = dx[r][c];
        tile_slope += ds[r][c] * alibi_derivative(head.alibi_distance(i0 + row, j0 + column));
      }
    }
    if (p.dalibi_slopes) slope += tile_slope;
    add_weighted_rows<T, N, SumOver::kKeys>(dq, head.seen_maps(kind, memory), head.key, j0, column0,
                                            memory);
  }
  ATTN_UNROLL
  for (int r = 0; r < kMicro; ++r) {
    const int64_t i = i0 + thread_row() * kMicro + r;
    ATTN_UNROLL
    for (int c = 0; c < N; ++c) {
      const int64_t column = column0 + c * kSide + thread_column();
      if (p.dq && i < p.Lq && column < p.D)
        store_element(p.dq.at(head.b, head.h, i, column), p.dq.dtype, dq[r][c]);
    }
  }
  if (!p.dalibi_slopes || column0 != 0) return;
  auto* warp_sums = reinterpret_cast<double*>(shared);
  slope = warp_sum(slope);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = slope;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double sum = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += warp_sums[warp];
  p.alibi_partial[bh * tiles + tile] = sum;
}

// 64 keys of a key head, and 16 * N columns of dv or of dk.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    attention_backward_key_kernel(const __grid_constant__ AttentionCall p) {
  ATTN_SHARED(shared);
  auto& memory = *reinterpret_cast<TileMemory<T, N>*>(shared);
  const int64_t tiles = tiles_over(p.Lk, kTile);
  const int64_t value_slices = p.dv ? tiles_over(p.Dv, N * kSide) : 0;
  const int64_t slices = value_slices + (p.dk ? tiles_over(p.D, N * kSide) : 0);
  int64_t item = blockIdx.x;
  const int64_t slice = item % slices;
  item /= slices;
  const int64_t j0 = item % tiles * kTile, b = item / tiles / p.Hkv, hkv = item / tiles % p.Hkv;
  const bool for_value = slice < value_slices;
  const int64_t column0 = (for_value ? slice : slice - value_slices) * N * kSide;
  T sums[kMicro][N];
  set_zero(sums);
  for (int64_t g = 0; g < p.group(); ++g) {
    const HeadGradients<T> head(p, b, hkv * p.group() + g);
    const Rows rows = for_value ? head.grad_out : head.query;
    const Range queries = head.queries_of_tile(j0);
    for (int64_t i0 = head.next_queries(j0, queries.begin, queries.end); i0 < queries.end;
         i0 = head.next_queries(j0, i0 + kTile, queries.end)) {
      const TileKind kind = head.map_tile(i0, j0, memory);
      if (kind == TileKind::kSkip) continue;
      T weights[kMicro][kMicro], ds[kMicro][kMicro], dx[kMicro][kMicro];
      if (for_value)
        head.template tile<false>(weights, ds, dx, i0, j0, kind, memory);
      else
        head.template tile<true>(weights, ds, dx, i0, j0, kind, memory);
      ATTN_UNROLL
      for (int r = 0; r < kMicro; ++r) {
        ATTN_UNROLL
        for (int c = 0; c < kMicro; ++c)
          memory.weights[(thread_row() * kMicro + r) * kPitch + thread_column() * kMicro + c] =
              for_value ? weights[r][c] : dx[r][c];
      }
      add_weighted_rows<T, N, SumOver::kQueries>(sums, head.seen_maps(kind, memory), rows, i0,
                                                 column0, memory);
    }
  }
  const View& result = for_value ? p.dv : p.dk;
  const int64_t columns = for_value ? p.Dv : p.D;
  ATTN_UNROLL
  for (int r = 0; r < kMicro; ++r) {
    const int64_t j = j0 + thread_row() * kMicro + r;
    ATTN_UNROLL
    for (int c = 0; c < N; ++c) {
      const int64_t column = column0 + c * kSide + thread_column();
      if (j < p.Lk && column < columns)
        store_element(result.at(b, hkv, j, column), result.dtype, sums[r][c]);
    }
  }
}

template <class T, int N>
void launch_attention_backward(const AttentionCall& p, Stream stream) {
  constexpr int kColumns = N * kSide;
  constexpr size_t kBytes = sizeof(TileMemory<T, N>);
  const int64_t query_slices = p.dq ? tiles_over(p.D, kColumns) : p.dalibi_slopes ? 1 : 0;
  const int64_t key_slices =
      (p.dv ? tiles_over(p.Dv, kColumns) : 0) + (p.dk ? tiles_over(p.D, kColumns) : 0);
  launch(attention_backward_query_kernel<T, N>, p.B * p.Hq * p.plan.chunks * query_slices, kThreads,
         kBytes, stream, p);
  launch(attention_backward_key_kernel<T, N>, p.B * p.Hkv * tiles_over(p.Lk, kTile) * key_slices,
         kThreads, kBytes, stream, p);
}

inline bool runs_on_tensor_cores(const AttentionCall& p, Stream stream) {
  const Dtype dtype = p.query.dtype;
  return (dtype == Dtype::kFloat16 && attention_tensor_backward<Dtype::kFloat16>(p, stream)) ||
         (dtype == Dtype::kBFloat16 && attention_tensor_backward<Dtype::kBFloat16>(p, stream));
}

template <class T>
void attention_backward(const AttentionCall& p, Stream stream) {
  launch(attention_backward_rows_kernel<T>, p.B * p.Hq * p.plan.row_blocks, kThreads,
         sizeof(RowsMemory<T>), stream, p);
  const bool done = runs_on_tensor_cores(p, stream);
  // Of double, registers hold no more than the narrow slices.
  constexpr int kWide = sizeof(T) == 4 ? 8 : 4;
  if (!done && max64(p.D, p.Dv) <= 4 * kSide) launch_attention_backward<T, 4>(p, stream);
  if (!done && max64(p.D, p.Dv) > 4 * kSide) launch_attention_backward<T, kWide>(p, stream);
  launch_term_gradients<T>(p, stream);
}

}  // namespace attn::cuda
