// Tiles of 16-bit elements in shared memory, filled by asynchronous copies, and their products on
// tensor cores. The fragments of a warp are those of multiply_add.
#pragma once

#include "core/mask.h"
#include "cuda/storage.cuh"

namespace attn::cuda {

constexpr int kChunk = 8;  // elements that are copied at once, 16 bytes

ATTN_DEVICE int lane_in_warp() { return static_cast<int>(threadIdx.x) % 32; }
// A lane's fragment of a 16 x 8 product has the rows g and g + 8, the columns 2 t and 2 t + 1.
ATTN_DEVICE int fragment_row() { return lane_in_warp() / 4; }
ATTN_DEVICE int fragment_column() { return lane_in_warp() % 4 * 2; }

// Rows of kColumns elements. A row's chunks are swizzled: the same one of 8 neighbouring rows,
// which one phase of ldmatrix reads, lies in 8 different groups of banks.
template <int kColumns>
struct SharedTile {
  static constexpr int kChunks = kColumns / kChunk;
  static_assert(kChunks % 8 == 0);

  unsigned char* data;

  static constexpr int bytes(int rows) { return rows * kColumns * 2; }

  ATTN_DEVICE unsigned char* chunk(int row, int chunk) const {
    return data + (row * kChunks + (chunk ^ (row & 7))) * 16;
  }
};

// Rows that lie such that whole chunks of them can be copied asynchronously.
ATTN_DEVICE bool has_chunks(const Rows& rows) {
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.row_stride % 16 == 0 &&
         rows.column_stride == 2;
}

// The chunks of kRows rows that a thread of kThreads copies, and looks at alone until a barrier.
template <int kThreads, int kRows, int kColumns>
struct OwnChunks {
  static constexpr int kChunks = SharedTile<kColumns>::kChunks, kCount = kRows * kChunks / kThreads;
  static_assert(kRows * kChunks % kThreads == 0);

  static ATTN_DEVICE int row(int n) {
    return (static_cast<int>(threadIdx.x) + n * kThreads) / kChunks;
  }
  static ATTN_DEVICE int chunk(int n) {
    return (static_cast<int>(threadIdx.x) + n * kThreads) % kChunks;
  }
};

// Begins to copy rows first .. first + kRows - 1, zeros where there are none. Without whole chunks
// to copy, elements are copied one at a time, at once.
template <int kThreads, int kRows, int kColumns>
ATTN_DEVICE void copy_rows(SharedTile<kColumns> to, const Rows& from, int64_t first, bool chunks) {
  using Own = OwnChunks<kThreads, kRows, kColumns>;
  if (chunks) {
    ATTN_UNROLL
    for (int n = 0; n < Own::kCount; ++n) {
      const int row = Own::row(n), column = Own::chunk(n) * kChunk;
      const bool inside = first + row < from.end && column < from.columns;
      copy_async(to.chunk(row, Own::chunk(n)),
                 inside ? from.data + (first + row) * from.row_stride + column * 2 : from.data,
                 inside ? static_cast<int>(min64(from.columns - column, kChunk)) * 2 : 0);
    }
    return;
  }
  ATTN_ROLLED
  for (int n = 0; n < Own::kCount; ++n) {
    const int row = Own::row(n);
    auto* chunk = reinterpret_cast<uint16_t*>(to.chunk(row, Own::chunk(n)));
    ATTN_ROLLED
    for (int e = 0; e < kChunk; ++e) {
      const int column = Own::chunk(n) * kChunk + e;
      const bool inside = first + row < from.end && column < from.columns;
      const char* at = from.data + (first + row) * from.row_stride + column * from.column_stride;
      chunk[e] = inside ? *reinterpret_cast<const uint16_t*>(at) : uint16_t{0};
    }
  }
}

// Whether one of two packed elements is NaN or infinite.
template <Dtype kDtype>
ATTN_DEVICE bool is_nonfinite(uint32_t pair) {
  constexpr uint32_t kExponent = kDtype == Dtype::kFloat16 ? 0x7c00u : 0x7f80u;
  return (pair & kExponent) == kExponent || (pair >> 16 & kExponent) == kExponent;
}

// The same of all chunks that the thread has copied.
template <Dtype kDtype, int kThreads, int kRows, int kColumns>
ATTN_DEVICE bool copied_nonfinite(SharedTile<kColumns> tile) {
  using Own = OwnChunks<kThreads, kRows, kColumns>;
  bool found = false;
  ATTN_UNROLL
  for (int n = 0; n < Own::kCount; ++n) {
    const auto* pairs = reinterpret_cast<const uint32_t*>(tile.chunk(Own::row(n), Own::chunk(n)));
    ATTN_UNROLL
    for (int e = 0; e < kChunk / 2; ++e) found |= is_nonfinite<kDtype>(pairs[e]);
  }
  return found;
}

// 16 rows from `row` on, 16 columns from `column` on, as the left operand.
template <int kColumns>
ATTN_DEVICE void load_left(uint32_t (&a)[4], SharedTile<kColumns> tile, int row, int column) {
  const int lane = lane_in_warp();
  load_matrices(a, tile.chunk(row + lane % 16, column / kChunk + lane / 16));
}

// The transpose of 16 rows and 16 columns as two right operands, of 8 rows each: sums over columns.
template <int kColumns>
ATTN_DEVICE void load_right_transposed(uint32_t (&b)[2][2], SharedTile<kColumns> tile, int row,
                                       int column) {
  const int lane = lane_in_warp();
  uint32_t r[4];
  load_matrices(r, tile.chunk(row + lane % 8 + lane / 16 * 8, column / kChunk + lane / 8 % 2));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// 16 rows and 16 columns as two right operands, of 8 columns each: sums over rows.
template <int kColumns>
ATTN_DEVICE void load_right(uint32_t (&b)[2][2], SharedTile<kColumns> tile, int row, int column) {
  const int lane = lane_in_warp();
  uint32_t r[4];
  load_matrices_transposed(r, tile.chunk(row + lane % 16, column / kChunk + lane / 16));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

template <int M, int N>
ATTN_DEVICE void set_zero(float (&sums)[M][N][4]) {
  ATTN_UNROLL
  for (int m = 0; m < M; ++m) {
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) sums[m][n][e] = 0;
    }
  }
}

// sums = a b^T: rows a_row .. of a, 16 * M of them, with rows 0 .. 8 * N - 1 of b.
template <Dtype kDtype, int M, int N, int kColumns>
ATTN_DEVICE void row_products(float (&sums)[M][N][4], SharedTile<kColumns> a, int a_row,
                              SharedTile<kColumns> b) {
  set_zero(sums);
  ATTN_UNROLL
  for (int column = 0; column < kColumns; column += 16) {
    uint32_t left[M][4];
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) load_left(left[m], a, a_row + 16 * m, column);
    ATTN_UNROLL
    for (int n = 0; n < N; n += 2) {
      uint32_t right[2][2];
      load_right_transposed(right, b, 8 * n, column);
      ATTN_UNROLL
      for (int m = 0; m < M; ++m) {
        multiply_add<kDtype>(sums[m][n], left[m], right[0]);
        multiply_add<kDtype>(sums[m][n + 1], left[m], right[1]);
      }
    }
  }
}

// sums += weights b, with 8 * K rows of b. The weights are fragments of a product, packed in pairs:
// weights[m][n][r] has the two columns of row g + 8 r. As such they are a left operand.
template <Dtype kDtype, int M, int N, int K, int kColumns>
ATTN_DEVICE void add_weighted_rows(float (&sums)[M][N][4], const uint32_t (&weights)[M][K][2],
                                   SharedTile<kColumns> b) {
  static_assert(N * 8 == kColumns);
  ATTN_UNROLL
  for (int k = 0; k < K; k += 2) {
    ATTN_UNROLL
    for (int n = 0; n < N; n += 2) {
      uint32_t right[2][2];
      load_right(right, b, 8 * k, 8 * n);
      ATTN_UNROLL
      for (int m = 0; m < M; ++m) {
        const uint32_t left[4] = {weights[m][k][0], weights[m][k][1], weights[m][k + 1][0],
                                  weights[m][k + 1][1]};
        multiply_add<kDtype>(sums[m][n], left, right[0]);
        multiply_add<kDtype>(sums[m][n + 1], left, right[1]);
      }
    }
  }
}

// Over the 4 lanes that share a fragment's rows; each gets the result.
template <class T, class Combine>
ATTN_DEVICE T across_quad(T value, Combine combine) {
  value = combine(value, __shfl_xor_sync(kWholeWarp, value, 1));
  return combine(value, __shfl_xor_sync(kWholeWarp, value, 2));
}

}  // namespace attn::cuda
