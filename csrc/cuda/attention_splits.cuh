// Attention forward of few queries (Dao, Haziza, Massa, Sizov 2023, "Flash-Decoding"): blocks share
// the keys of a head, and a merge adds up what they found. The queries of all heads that share keys
// are rows of one tile, so that keys and values are read once.
#pragma once

#include "cuda/attention_forward.cuh"

namespace attn::cuda {

template <class T>
using GroupScores = HeadScores<T, RowsOf::kGroup>;

// What a block owns: rows of the heads from h on, and the keys of a split.
struct SplitItem {
  int64_t b, h, row, split;

  ATTN_DEVICE SplitItem(const AttentionCall& p, int64_t item) {
    split = item % p.splits.count;
    item /= p.splits.count;
    const int64_t tiles = tiles_over(p.Lq * p.group(), kSplitRows);
    row = item % tiles * kSplitRows;
    item /= tiles;
    h = item % p.Hkv * p.group();
    b = item / p.Hkv;
  }

  ATTN_DEVICE Range keys(const AttentionCall& p) const {
    return {split * p.splits.keys, (split + 1) * p.splits.keys};
  }
};

inline int64_t split_items(const AttentionCall& p) {
  return p.B * p.Hkv * tiles_over(p.Lq * p.group(), kSplitRows) * p.splits.count;
}

// Which of the results of splits is that of one row.
template <class Head>
ATTN_DEVICE int64_t split_place(const Head& head, int64_t split, int64_t row) {
  const AttentionCall& p = head.p;
  return ((split * p.B + head.b) * p.Hq + head.head_of(row)) * p.Lq + head.query_of(row);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    attention_split_kernel(const __grid_constant__ AttentionCall p) {
  ATTN_SHARED(shared);
  auto& memory = *reinterpret_cast<TileMemory<T, N>*>(shared);
  const int64_t slices = max64(1, tiles_over(p.Dv, N * kSide));
  const int64_t column0 = blockIdx.x % slices * N * kSide;
  const SplitItem item(p, blockIdx.x / slices);
  const GroupScores<T> head(p, item.b, item.h, item.keys(p));
  const OnlineSoftmax<T, N> softmax(head, item.row, column0, memory);
  const T keep_scale = static_cast<T>(head.dropout.keep_scale);
  ATTN_UNROLL
  for (int r = 0; r < kMicro; ++r) {
    const int64_t row = item.row + thread_row() * kMicro + r;
    if (row >= head.row_count()) continue;
    const int64_t place = split_place(head, item.split, row);
    T* out = static_cast<T*>(p.split_out) + place * p.Dv;
    ATTN_UNROLL
    for (int c = 0; c < N; ++c) {
      const int64_t column = column0 + c * kSide + thread_column();
      if (column < p.Dv) out[column] = softmax.result(r, c, keep_scale);
    }
    if (column0 == 0 && thread_column() == 0) static_cast<T*>(p.split_lse)[place] = softmax.lse(r);
  }
}

constexpr int kMergeThreads = 128;

// A block adds up one row: the splits weigh as the sums of their exp(score) do, and the sink counts
// once.
template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    attention_merge_kernel(const __grid_constant__ AttentionCall p) {
  ATTN_SHARED(shared);
  T* weights = reinterpret_cast<T*>(shared);
  const int64_t rows = p.B * p.Hq * p.Lq, row = blockIdx.x, count = p.splits.count;
  const int64_t i = row % p.Lq, h = row / p.Lq % p.Hq, b = row / p.Lq / p.Hq;
  const T* split_lse = static_cast<const T*>(p.split_lse) + row;
  const T sink = p.sinks ? load_element<T>(p.sinks.at(0, h, 0), p.sinks.dtype) : -infinity<T>();
  T top = sink;
  for (int64_t s = 0; s < count; ++s) top = std::fmax(top, split_lse[s * rows]);
  const T base = top == -infinity<T>() ? 0 : top;
  const auto weight = [base](T x) { return std::exp(x - base); };
  for (int64_t s = threadIdx.x; s < count; s += kMergeThreads)
    weights[s] = weight(split_lse[s * rows]);
  __syncthreads();
  T whole = weight(sink);
  for (int64_t s = 0; s < count; ++s) whole += weights[s];
  for (int64_t column = threadIdx.x; column < p.Dv; column += kMergeThreads) {
    const T* out = static_cast<const T*>(p.split_out) + row * p.Dv + column;
    T sum = 0;
    for (int64_t s = 0; s < count; ++s) sum += weights[s] * out[s * rows * p.Dv];
    store_element(p.out.at(b, h, i, column), p.out.dtype, whole == 0 ? T(0) : sum / whole);
  }
  if (threadIdx.x != 0) return;
  store_element(p.lse.at(b, h, i), p.lse.dtype,
                whole == 0             ? -infinity<T>()
                : top == infinity<T>() ? top
                                       : top + std::log(whole));
}

template <class T, int N>
void launch_splits(const AttentionCall& p, Stream stream) {
  launch(attention_split_kernel<T, N>, split_items(p) * max64(1, tiles_over(p.Dv, N * kSide)),
         kThreads, sizeof(TileMemory<T, N>), stream, p);
}

template <class T>
void attention_splits(const AttentionCall& p, Stream stream) {
  const Dtype dtype = p.query.dtype;
  const bool done =
      (dtype == Dtype::kFloat16 && attention_tensor_splits<Dtype::kFloat16>(p, stream)) ||
      (dtype == Dtype::kBFloat16 && attention_tensor_splits<Dtype::kBFloat16>(p, stream));
  if (!done) (p.Dv <= 4 * kSide ? launch_splits<T, 4> : launch_splits<T, 8>)(p, stream);
  launch(attention_merge_kernel<T>, p.B * p.Hq * p.Lq, kMergeThreads, p.splits.count * sizeof(T),
         stream, p);
}

}  // namespace attn::cuda
