// Products of 64 x 64 tiles on plain arithmetic units: a block of 16 x 16 threads, each with 4 rows
// and 4 columns of the tile. Operands pass through shared memory 16 deep.
#pragma once

#include "cuda/storage.cuh"

namespace attn::cuda {

constexpr int kTile = 64;  // rows and keys: one word of a row map
constexpr int kSide = 16;  // threads along either side of a tile
constexpr int kThreads = kSide * kSide;
constexpr int kMicro = kTile / kSide;
constexpr int kDepth = 16;
constexpr int kPitch = kTile + 4;  // of a tile's row in shared memory, whole vectors apart

ATTN_DEVICE int thread_row() { return static_cast<int>(threadIdx.x) / kSide; }
ATTN_DEVICE int thread_column() { return static_cast<int>(threadIdx.x) % kSide; }

// How many items of `size` cover n.
ATTN_HD inline int64_t tiles_over(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Which one of all items a thread of kThreads a block takes, or its warp.
ATTN_DEVICE int64_t thread_item() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }
ATTN_DEVICE int64_t warp_item() { return thread_item() / 32; }
inline int64_t blocks_of_threads(int64_t items) { return tiles_over(items, kThreads); }
inline int64_t blocks_of_warps(int64_t items) { return tiles_over(items, kThreads / 32); }

// Shared memory of a block. N: columns per thread of what accumulates (0: nothing does).
template <class T, int N>
struct TileMemory {
  static constexpr int kColumns = N > 0 ? N* kSide : kTile;
  T left[kDepth * kPitch];
  T right[kDepth * (kColumns > kPitch ? kColumns : kPitch)];
  T weights[N > 0 ? kTile* kPitch : 1];  // [summed over][row]
  uint64_t maps[kTile];                  // row maps of the tile
  uint64_t seen[kTile];                  // the same without what a bias of -inf masks
};

template <class T, int M, int N>
ATTN_DEVICE void set_zero(T (&values)[M][N]) {
  ATTN_UNROLL
  for (int r = 0; r < M; ++r) {
    ATTN_UNROLL
    for (int c = 0; c < N; ++c) values[r][c] = 0;
  }
}

// products[r][c] = sum_d a[i0 + 4 ty + r][d] * b[j0 + 4 tx + c][d]. Ends with a barrier.
template <class T, class LeftRows, class Memory>
ATTN_DEVICE void row_products(T (&products)[kMicro][kMicro], const LeftRows& a, int64_t i0,
                              const Rows& b, int64_t j0, Memory& memory) {
  set_zero(products);
  const int depth = static_cast<int>(threadIdx.x) % kDepth;
  const int first = static_cast<int>(threadIdx.x) / kDepth;
  for (int64_t d0 = 0; d0 < a.columns; d0 += kDepth) {
    ATTN_UNROLL
    for (int row = first; row < kTile; row += kThreads / kDepth) {
      memory.left[depth * kPitch + row] = a.template load<T>(i0 + row, d0 + depth);
      memory.right[depth * kPitch + row] = b.load<T>(j0 + row, d0 + depth);
    }
    __syncthreads();
    ATTN_UNROLL
    for (int d = 0; d < kDepth; ++d) {
      const T* left = memory.left + d * kPitch + thread_row() * kMicro;
      const T* right = memory.right + d * kPitch + thread_column() * kMicro;
      ATTN_UNROLL
      for (int r = 0; r < kMicro; ++r) {
        ATTN_UNROLL
        for (int c = 0; c < kMicro; ++c) products[r][c] += left[r] * right[c];
      }
    }
    __syncthreads();
  }
}

// What add_weighted_rows sums over: the keys of each query, or the queries of each key.
enum class SumOver { kKeys, kQueries };

// sums[r][c] += sum_k memory.weights[k][4 ty + r] * b[k0 + k][column0 + 16 c + tx], where `maps`,
// if given, leaves out the pairs that don't see each other. Begins and ends with a barrier.
template <class T, int N, SumOver kSum, class Memory>
ATTN_DEVICE void add_weighted_rows(T (&sums)[kMicro][N], const uint64_t* maps, const Rows& b,
                                   int64_t k0, int64_t column0, Memory& memory) {
  constexpr int kColumns = Memory::kColumns;
  __syncthreads();
  uint64_t row_maps[kMicro];
  ATTN_UNROLL
  for (int r = 0; r < kMicro; ++r)
    row_maps[r] = maps && kSum == SumOver::kKeys ? maps[thread_row() * kMicro + r] : 0;
  for (int first = 0; first < kTile; first += kDepth) {
    for (int e = static_cast<int>(threadIdx.x); e < kDepth * kColumns; e += kThreads)
      memory.right[e] = b.load<T>(k0 + first + e / kColumns, column0 + e % kColumns);
    __syncthreads();
    for (int d = 0; d < kDepth; ++d) {
      const int k = first + d;
      const uint64_t query_map = maps && kSum == SumOver::kQueries ? maps[k] : 0;
      const T* weights = memory.weights + k * kPitch + thread_row() * kMicro;
      const T* right = memory.right + d * kColumns + thread_column();
      ATTN_UNROLL
      for (int r = 0; r < kMicro; ++r) {
        const bool seen = kSum == SumOver::kKeys ? row_maps[r] >> k & 1
                                                 : query_map >> (thread_row() * kMicro + r) & 1;
        if (maps && !seen) continue;
        ATTN_UNROLL
        for (int c = 0; c < N; ++c) sums[r][c] += weights[r] * right[c * kSide];
      }
    }
    __syncthreads();
  }
}

template <class T>
ATTN_DEVICE T warp_sum(T value) {
  ATTN_UNROLL
  for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(kWholeWarp, value, by);
  return value;
}

template <class T>
ATTN_DEVICE T warp_maximum(T value) {
  ATTN_UNROLL
  for (int by = 16; by > 0; by /= 2)
    value = std::fmax(value, __shfl_xor_sync(kWholeWarp, value, by));
  return value;
}

// Over the 16 threads that share a tile's rows; every one of them gets the result.
template <class T, class Combine>
ATTN_DEVICE T across_columns(T value, Combine combine) {
  ATTN_UNROLL
  for (int by = 1; by < kSide; by *= 2)
    value = combine(value, __shfl_xor_sync(kWholeWarp, value, by));
  return value;
}

}  // namespace attn::cuda
