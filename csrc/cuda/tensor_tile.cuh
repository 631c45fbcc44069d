// Tiles of 16-bit elements in shared memory, filled by asynchronous copies, and their products on
// tensor cores. The fragments of a warp are those of multiply_add.
#pragma once

#include "core/mask.h"
#include "cuda/storage.cuh"

namespace attn::cuda {

constexpr int kChunk = 8;  // elements that are copied at once, 16 bytes

// A lane's fragment of a 16 x 8 product has the rows g and g + 8, the columns 2 t and 2 t + 1.
ATTN_DEVICE int fragment_row() { return lane_in_warp() / 4; }
ATTN_DEVICE int fragment_column() { return lane_in_warp() % 4 * 2; }

// Rows of kColumns elements, at a multiple of 128 bytes of shared memory. A row's chunks are
// swizzled: the same one of 8 neighbouring rows, which one phase of ldmatrix reads, lies in 8
// different groups of banks.
template <int kColumns>
struct SharedTile {
  static constexpr int kChunks = kColumns / kChunk, kRowBytes = kColumns * 2;
  static_assert(kChunks % 8 == 0);

  unsigned char* shared;
  uint32_t offset;

  static ATTN_HD constexpr int bytes(int rows) { return rows * kRowBytes; }

  ATTN_DEVICE uint32_t offset_of(int row, int chunk) const {
    return offset + row * kRowBytes + (chunk ^ (row & 7)) * 16;
  }
  ATTN_DEVICE unsigned char* chunk(int row, int chunk) const {
    return shared + offset_of(row, chunk);
  }
  // The tile of the rows from a multiple of 8 on.
  ATTN_DEVICE SharedTile from_row(int row) const { return {shared, offset + row * kRowBytes}; }
};

// A lane's chunk of a tile, and those by multiples of 16 rows and columns away from it, to which an
// exclusive or leads.
template <int kColumns>
class LaneChunks {
 public:
  ATTN_DEVICE LaneChunks(SharedTile<kColumns> tile, int row, int chunk)
      : shared_(tile.shared), offset_(tile.offset_of(row, chunk)) {}

  ATTN_DEVICE const unsigned char* away(int rows, int columns) const {
    return shared_ +
           ((offset_ ^ columns / kChunk % 8 * 16) + rows * kRowBytes + columns / 64 * 128);
  }

 private:
  static constexpr int kRowBytes = SharedTile<kColumns>::kRowBytes;
  unsigned char* shared_;
  uint32_t offset_;
};

// Rows that lie such that whole chunks of them can be copied asynchronously.
ATTN_DEVICE bool has_chunks(const Rows& rows) {
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.row_stride % 16 == 0 &&
         rows.column_stride == 2;
}
ATTN_DEVICE bool has_chunks(const GroupRows& rows) {
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.row_stride % 16 == 0 &&
         rows.head_stride % 16 == 0 && rows.column_stride == 2;
}

// The chunks of kRows rows that a thread of kThreads copies, and looks at alone until a barrier:
// the same chunk of every kStep-th row from first_row() on.
template <int kThreads, int kRows, int kColumns>
struct OwnChunks {
  static constexpr int kChunks = SharedTile<kColumns>::kChunks;
  static constexpr int kStep = kThreads / kChunks, kCount = kRows / kStep;
  static_assert(kThreads % kChunks == 0 && kRows % kStep == 0);

  static ATTN_DEVICE int first_row() { return static_cast<int>(threadIdx.x) / kChunks; }
  static ATTN_DEVICE int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
};

// Begins to copy rows first .. first + kRows - 1, zeros where there are none. Without whole chunks
// to copy, elements are copied one at a time, at once.
template <int kThreads, int kRows, int kColumns>
ATTN_DEVICE void copy_rows(SharedTile<kColumns> to, const Rows& from, int64_t first, bool chunks) {
  using Own = OwnChunks<kThreads, kRows, kColumns>;
  const int column = Own::chunk() * kChunk;
  const auto columns = static_cast<int>(min64(max64(from.columns - column, 0), kChunk));
  const auto rows = static_cast<int>(min64(from.end - first, kRows));
  const char* row_at = from.data + (first + Own::first_row()) * from.row_stride;
  if (chunks) {
    ATTN_UNROLL
    for (int n = 0; n < Own::kCount; ++n) {
      const int row = Own::first_row() + n * Own::kStep;
      const bool inside = row < rows && columns > 0;
      copy_async(to.chunk(row, Own::chunk()), inside ? row_at + column * 2 : from.data,
                 inside ? columns * 2 : 0);
      row_at += Own::kStep * from.row_stride;
    }
    return;
  }
  ATTN_ROLLED
  for (int row = Own::first_row(); row < kRows; row += Own::kStep) {
    auto* chunk = reinterpret_cast<uint16_t*>(to.chunk(row, Own::chunk()));
    ATTN_ROLLED
    for (int e = 0; e < kChunk; ++e) {
      const char* at = row_at + (column + e) * from.column_stride;
      chunk[e] = row < rows && e < columns ? *reinterpret_cast<const uint16_t*>(at) : uint16_t{0};
    }
    row_at += Own::kStep * from.row_stride;
  }
}

template <int kThreads, int kRows, int kColumns>
ATTN_DEVICE void copy_rows(SharedTile<kColumns> to, const GroupRows& from, int64_t first,
                           bool chunks) {
  using Own = OwnChunks<kThreads, kRows, kColumns>;
  const int column = Own::chunk() * kChunk;
  const auto columns = static_cast<int>(min64(max64(from.columns - column, 0), kChunk));
  ATTN_ROLLED
  for (int row = Own::first_row(); row < kRows; row += Own::kStep) {
    const bool inside = first + row < from.end && columns > 0;
    const char* at = inside ? from.at(first + row) + column * from.column_stride : from.data;
    unsigned char* chunk = to.chunk(row, Own::chunk());
    if (chunks) {
      copy_async(chunk, at, inside ? columns * 2 : 0);
      continue;
    }
    ATTN_ROLLED
    for (int e = 0; e < kChunk; ++e)
      reinterpret_cast<uint16_t*>(chunk)[e] =
          inside && e < columns ? *reinterpret_cast<const uint16_t*>(at + e * from.column_stride)
                                : uint16_t{0};
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
    const auto* pairs = reinterpret_cast<const uint32_t*>(
        tile.chunk(Own::first_row() + n * Own::kStep, Own::chunk()));
    ATTN_UNROLL
    for (int e = 0; e < kChunk / 2; ++e) found |= is_nonfinite<kDtype>(pairs[e]);
  }
  return found;
}

// What a lane reads of 16 rows from `row` on, for load_matrices: as a left operand, or transposed
// as a right one, whose product sums over rows.
template <int kColumns>
ATTN_DEVICE LaneChunks<kColumns> rows_of_lane(SharedTile<kColumns> tile, int row) {
  return {tile, row + lane_in_warp() % 16, lane_in_warp() / 16};
}

// The same as a right operand whose product sums over columns.
template <int kColumns>
ATTN_DEVICE LaneChunks<kColumns> columns_of_lane(SharedTile<kColumns> tile, int row) {
  return {tile, row + lane_in_warp() % 8 + lane_in_warp() / 16 * 8, lane_in_warp() / 8 % 2};
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

// first, second += left times the two right operands that load_matrices gave.
template <Dtype kDtype>
ATTN_DEVICE void add_products(float (&first)[4], float (&second)[4], const uint32_t (&left)[4],
                              const uint32_t (&right)[4]) {
  multiply_add<kDtype>(first, left, {right[0], right[1]});
  multiply_add<kDtype>(second, left, {right[2], right[3]});
}

// sums = a b^T: 16 * M rows of a from a_row on, with 8 * N rows of b.
template <Dtype kDtype, int M, int N, int kColumns>
ATTN_DEVICE void row_products(float (&sums)[M][N][4], SharedTile<kColumns> a, int a_row,
                              SharedTile<kColumns> b) {
  const auto a_chunks = rows_of_lane(a, a_row), b_chunks = columns_of_lane(b, 0);
  set_zero(sums);
  ATTN_UNROLL
  for (int column = 0; column < kColumns; column += 16) {
    uint32_t left[M][4];
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) load_matrices(left[m], a_chunks.away(16 * m, column));
    ATTN_UNROLL
    for (int n = 0; n < N; n += 2) {
      uint32_t right[4];
      load_matrices(right, b_chunks.away(8 * n, column));
      ATTN_UNROLL
      for (int m = 0; m < M; ++m) add_products<kDtype>(sums[m][n], sums[m][n + 1], left[m], right);
    }
  }
}

// sums += weights b, with 8 * K rows of b. The weights are fragments of a product, packed in pairs:
// weights[m][k][r] has the two columns of row g + 8 r. As such they are a left operand.
template <Dtype kDtype, int M, int N, int K, int kColumns>
ATTN_DEVICE void add_weighted_rows(float (&sums)[M][N][4], const uint32_t (&weights)[M][K][2],
                                   SharedTile<kColumns> b) {
  static_assert(N * 8 == kColumns);
  const auto chunks = rows_of_lane(b, 0);
  ATTN_UNROLL
  for (int k = 0; k < K; k += 2) {
    ATTN_UNROLL
    for (int n = 0; n < N; n += 2) {
      uint32_t right[4];
      load_matrices_transposed(right, chunks.away(8 * k, 8 * n));
      ATTN_UNROLL
      for (int m = 0; m < M; ++m)
        add_products<kDtype>(
            sums[m][n], sums[m][n + 1],
            {weights[m][k][0], weights[m][k][1], weights[m][k + 1][0], weights[m][k + 1][1]},
            right);
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
