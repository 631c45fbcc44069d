// Products of square matrices in shared memory by a block, with one source for plain arithmetic
// (float, double) and for tensor cores (bfloat16 and float16 with float sums). A chunk of tokens is
// one such side long; more columns than that go in blocks. Nothing here has a barrier unless it
// says so.
#pragma once

#include "cuda/tensor_tile.cuh"
#include "cuda/tile.cuh"

namespace attn::cuda {

template <class T>
struct PlainArithmetic {
  using Sum = T;
  static constexpr bool kTensor = false;
  static constexpr int kEdge = sizeof(T) == 4 ? 64 : 32, kThreads = 256;
};

template <Dtype kDtype>
struct TensorArithmetic {
  using Sum = float;
  static constexpr bool kTensor = true;
  static constexpr Dtype kType = kDtype;
  static constexpr int kEdge = 64, kThreads = 128;
};

// A matrix of kEdge columns in shared memory, at a multiple of 128 bytes; kEdge rows where nothing
// else is said. A thread's own elements are those that it loads and transforms.
template <class Arithmetic>
class ChunkTile;

template <class T>
class ChunkTile<PlainArithmetic<T>> {
  using Arithmetic = PlainArithmetic<T>;
  static constexpr int kEdge = Arithmetic::kEdge, kPitch = kEdge + 1;
  T* elements_;

 public:
  static constexpr ATTN_HD size_t bytes(int rows = kEdge) {
    return (rows * kPitch * sizeof(T) + 127) / 128 * 128;
  }

  ATTN_DEVICE explicit ChunkTile(unsigned char* shared) : elements_(reinterpret_cast<T*>(shared)) {}

  ATTN_DEVICE T get(int row, int column) const { return elements_[row * kPitch + column]; }
  ATTN_DEVICE void set(int row, int column, T x) const { elements_[row * kPitch + column] = x; }

  // x <- f(row, column, x) for the thread's own elements.
  template <class F>
  ATTN_DEVICE void transform(F f) const {
    for (int e = static_cast<int>(threadIdx.x); e < kEdge * kEdge; e += Arithmetic::kThreads)
      set(e / kEdge, e % kEdge, f(e / kEdge, e % kEdge, get(e / kEdge, e % kEdge)));
  }

  // Begins to load rows first .. first + kEdge - 1, columns column .. column + kEdge - 1; 0 where
  // there are none.
  ATTN_DEVICE void load(const Rows& rows, int64_t first, int64_t column) const {
    fill([&](int r, int c) { return rows.template load<T>(first + r, column + c); });
  }
  // Until what the thread itself began to load is there; other threads' after a barrier.
  ATTN_DEVICE void wait() const {}

  // Of the thread's own elements.
  ATTN_DEVICE bool is_finite() const {
    bool finite = true;
    for (int e = static_cast<int>(threadIdx.x); e < kEdge * kEdge; e += Arithmetic::kThreads)
      finite = finite && std::isfinite(get(e / kEdge, e % kEdge));
    return finite;
  }

  // Loads a matrix of sums divided by a power of two, which it returns, so that they fit the tile.
  // May hold barriers.
  ATTN_DEVICE T load_scaled(const T* from, int64_t pitch, int rows, int columns) const {
    fill([&](int r, int c) { return r < rows && c < columns ? from[r * pitch + c] : T(0); });
    return 1;
  }

 private:
  template <class F>
  ATTN_DEVICE void fill(F f) const {
    for (int e = static_cast<int>(threadIdx.x); e < kEdge * kEdge; e += Arithmetic::kThreads)
      set(e / kEdge, e % kEdge, f(e / kEdge, e % kEdge));
  }
};

template <Dtype kDtype>
class ChunkTile<TensorArithmetic<kDtype>> {
  using Arithmetic = TensorArithmetic<kDtype>;
  static constexpr int kEdge = Arithmetic::kEdge, kThreads = Arithmetic::kThreads;
  using Own = OwnChunks<kThreads, kEdge, kEdge>;
  SharedTile<kEdge> tile_;

  ATTN_DEVICE uint16_t* element(int row, int column) const {
    return reinterpret_cast<uint16_t*>(tile_.chunk(row, column / kChunk)) + column % kChunk;
  }

 public:
  static constexpr ATTN_HD size_t bytes(int rows = kEdge) { return SharedTile<kEdge>::bytes(rows); }

  ATTN_DEVICE explicit ChunkTile(unsigned char* shared) : tile_{shared, 0} {}

  ATTN_DEVICE SharedTile<kEdge> shared() const { return tile_; }
  ATTN_DEVICE float get(int row, int column) const { return unpack<kDtype>(*element(row, column)); }
  ATTN_DEVICE void set(int row, int column, float x) const {
    *element(row, column) = static_cast<uint16_t>(pack<kDtype>(x, 0.0f));
  }
  // At an even column.
  ATTN_DEVICE uint32_t get_pair(int row, int column) const {
    return *reinterpret_cast<const uint32_t*>(element(row, column));
  }
  ATTN_DEVICE void set_pair(int row, int column, float x, float y) const {
    *reinterpret_cast<uint32_t*>(element(row, column)) = pack<kDtype>(x, y);
  }

  template <class F>
  ATTN_DEVICE void transform(F f) const {
    ATTN_UNROLL
    for (int n = 0; n < Own::kCount; ++n) {
      const int row = Own::first_row() + n * Own::kStep, column = Own::chunk() * kChunk;
      auto* pairs = reinterpret_cast<uint32_t*>(tile_.chunk(row, Own::chunk()));
      uint32_t own[kChunk / 2];  // so that what f reads need not be read again after each store
      ATTN_UNROLL
      for (int e = 0; e < kChunk / 2; ++e) own[e] = pairs[e];
      ATTN_UNROLL
      for (int e = 0; e < kChunk / 2; ++e)
        own[e] = pack<kDtype>(f(row, column + 2 * e, unpack<kDtype>(own[e])),
                              f(row, column + 2 * e + 1, unpack<kDtype>(own[e] >> 16)));
      ATTN_UNROLL
      for (int e = 0; e < kChunk / 2; ++e) pairs[e] = own[e];
    }
  }

  ATTN_DEVICE void load(const Rows& rows, int64_t first, int64_t column) const {
    const Rows from{rows.data + column * rows.column_stride,
                    rows.dtype,
                    rows.row_stride,
                    rows.column_stride,
                    rows.end,
                    rows.columns - column};
    copy_rows<kThreads, kEdge, kEdge>(tile_, from, first, has_chunks(from));
    end_copy_group();
  }
  ATTN_DEVICE void wait() const { wait_for_copies<0>(); }

  ATTN_DEVICE bool is_finite() const {
    return !copied_nonfinite<kDtype, kThreads, kEdge, kEdge>(tile_);
  }

  ATTN_DEVICE float load_scaled(const float* from, int64_t pitch, int rows, int columns) const {
    constexpr int kPairs = kEdge / 2, kCount = kEdge * kPairs / kThreads;
    const int column = static_cast<int>(threadIdx.x) % kPairs * 2;
    const int first = static_cast<int>(threadIdx.x) / kPairs;
    float values[kCount][2], largest = 0;
    ATTN_UNROLL
    for (int n = 0; n < kCount; ++n) {
      const int row = first + n * (kThreads / kPairs);
      ATTN_UNROLL
      for (int e = 0; e < 2; ++e) {
        const bool inside = row < rows && column + e < columns;
        values[n][e] = inside ? from[row * pitch + column + e] : 0.0f;
        largest = std::fmax(largest, std::fabs(values[n][e]));
      }
    }
    const float scale = power_of_two(block_maximum(largest)), inverse = 1 / scale;
    ATTN_UNROLL
    for (int n = 0; n < kCount; ++n)
      set_pair(first + n * (kThreads / kPairs), column, values[n][0] * inverse,
               values[n][1] * inverse);
    return scale;
  }

 private:
  // Over the block, by way of the tile, with two barriers.
  ATTN_DEVICE float block_maximum(float value) const {
    value = warp_maximum(value);
    auto* largest = reinterpret_cast<float*>(tile_.chunk(0, 0));
    if (lane_in_warp() == 0) largest[threadIdx.x / 32] = value;
    __syncthreads();
    ATTN_UNROLL
    for (int warp = 0; warp < kThreads / 32; ++warp) value = std::fmax(value, largest[warp]);
    __syncthreads();
    return value;
  }
  // The largest one that is at most x, or 1.
  static ATTN_DEVICE float power_of_two(float x) {
    const bool normal = x > 1e-30f && x < 1e30f;
    return normal ? bits_to_float(float_to_bits(x) & 0x7f800000u) : 1.0f;
  }
};

// A square matrix of sums, spread over the block's threads. A thread's elements lie in rows of one
// group of 16.
template <class Arithmetic>
struct ChunkSum;

template <class T>
struct ChunkSum<PlainArithmetic<T>> {
  static constexpr int kMicro = PlainArithmetic<T>::kEdge / kSide;
  T value[kMicro][kMicro];

  static ATTN_DEVICE int row(int r) { return thread_row() * kMicro + r; }
  static ATTN_DEVICE int column(int c) { return c * kSide + thread_column(); }
  static ATTN_DEVICE int row_group() { return row(0) / 16; }

  ATTN_DEVICE void clear() { set_zero(value); }
  ATTN_DEVICE void add(const ChunkSum& other, T factor) {
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c) value[r][c] += factor * other.value[r][c];
    }
  }

  // f(row, column, element)
  template <class F>
  ATTN_DEVICE void for_each(F f) {
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c) f(row(r), column(c), value[r][c]);
    }
  }
  // f(row, sum) once for each row, by one thread; all threads of a warp take part.
  template <class F>
  ATTN_DEVICE void for_each_row_sum(F f) const {
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      T sum = 0;
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c) sum += value[r][c];
      sum = across_columns(sum, [](T x, T y) { return x + y; });
      if (thread_column() == 0) f(row(r), sum);
    }
  }
  // += weights[row] times the tile
  ATTN_DEVICE void add_rows(const T* weights, ChunkTile<PlainArithmetic<T>> tile) {
    for_each([&](int r, int c, T& x) { x += weights[r] * tile.get(r, c); });
  }
  ATTN_DEVICE void store(ChunkTile<PlainArithmetic<T>> tile) {
    for_each([&](int r, int c, T x) { tile.set(r, c, x); });
  }
};

template <Dtype kDtype>
struct ChunkSum<TensorArithmetic<kDtype>> {
  static constexpr int kTiles = TensorArithmetic<kDtype>::kEdge / 8;
  float value[1][kTiles][4];

  static ATTN_DEVICE int row_group() { return static_cast<int>(threadIdx.x) / 32; }
  static ATTN_DEVICE int row(int e) { return row_group() * 16 + fragment_row() + e / 2 * 8; }
  static ATTN_DEVICE int column(int n, int e) { return n * 8 + fragment_column() + e % 2; }

  ATTN_DEVICE void clear() { set_zero(value); }
  ATTN_DEVICE void add(const ChunkSum& other, float factor) {
    ATTN_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) value[0][n][e] += factor * other.value[0][n][e];
    }
  }

  template <class F>
  ATTN_DEVICE void for_each(F f) {
    ATTN_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) f(row(e), column(n, e), value[0][n][e]);
    }
  }
  template <class F>
  ATTN_DEVICE void for_each_row_sum(F f) const {
    ATTN_UNROLL
    for (int half = 0; half < 4; half += 2) {
      float sum = 0;
      ATTN_UNROLL
      for (int n = 0; n < kTiles; ++n) sum += value[0][n][half] + value[0][n][half + 1];
      sum = across_quad(sum, [](float x, float y) { return x + y; });
      if (fragment_column() == 0) f(row(half), sum);
    }
  }
  ATTN_DEVICE void add_rows(const float* weights, ChunkTile<TensorArithmetic<kDtype>> tile) {
    ATTN_UNROLL
    for (int e = 0; e < 4; e += 2) {
      const float weight = weights[row(e)];
      ATTN_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        const uint32_t pair = tile.get_pair(row(e), column(n, e));
        value[0][n][e] += weight * unpack<kDtype>(pair);
        value[0][n][e + 1] += weight * unpack<kDtype>(pair >> 16);
      }
    }
  }
  ATTN_DEVICE void store(ChunkTile<TensorArithmetic<kDtype>> tile) {
    ATTN_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; e += 2)
        tile.set_pair(row(e), column(n, e), value[0][n][e], value[0][n][e + 1]);
    }
  }
};

// What of the operands a product reads: sum += a' b' over `depth` columns of a' from a_first on,
// and as many rows of b' from b_first on; multiples of 16. a' is a, or transposed; so is b'.
struct Depth {
  int depth, a_first = 0, b_first = 0;
};

template <bool kTransposeA, bool kTransposeB, class T>
ATTN_DEVICE void add_product(ChunkSum<PlainArithmetic<T>>& sum, ChunkTile<PlainArithmetic<T>> a,
                             ChunkTile<PlainArithmetic<T>> b, Depth part) {
  using Sum = ChunkSum<PlainArithmetic<T>>;
  constexpr int kMicro = Sum::kMicro;
  for (int k = 0; k < part.depth; ++k) {
    T left[kMicro], right[kMicro];
    const int i = part.a_first + k, j = part.b_first + k;
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r)
      left[r] = kTransposeA ? a.get(i, Sum::row(r)) : a.get(Sum::row(r), i);
    ATTN_UNROLL
    for (int c = 0; c < kMicro; ++c)
      right[c] = kTransposeB ? b.get(Sum::column(c), j) : b.get(j, Sum::column(c));
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c) sum.value[r][c] += left[r] * right[c];
    }
  }
}

template <bool kTransposeA, bool kTransposeB, Dtype kDtype>
ATTN_DEVICE void add_product(ChunkSum<TensorArithmetic<kDtype>>& sum,
                             ChunkTile<TensorArithmetic<kDtype>> a,
                             ChunkTile<TensorArithmetic<kDtype>> b, Depth part) {
  using Sum = ChunkSum<TensorArithmetic<kDtype>>;
  const int row = Sum::row_group() * 16;
  const auto a_chunks =
      kTransposeA ? columns_of_lane(a.shared(), part.a_first) : rows_of_lane(a.shared(), row);
  const auto b_chunks =
      kTransposeB ? columns_of_lane(b.shared(), 0) : rows_of_lane(b.shared(), part.b_first);
  ATTN_UNROLL
  for (int k = 0; k < TensorArithmetic<kDtype>::kEdge; k += 16) {
    if (k >= part.depth) break;
    uint32_t left[4], right[4];
    if constexpr (kTransposeA)
      load_matrices_transposed(left, a_chunks.away(k, row));
    else
      load_matrices(left, a_chunks.away(0, part.a_first + k));
    ATTN_UNROLL
    for (int n = 0; n < Sum::kTiles; n += 2) {
      if constexpr (kTransposeB)
        load_matrices(right, b_chunks.away(8 * n, part.b_first + k));
      else
        load_matrices_transposed(right, b_chunks.away(k, 8 * n));
      add_products<kDtype>(sum.value[0][n], sum.value[0][n + 1], left, right);
    }
  }
}

// The product of a triangle, pair by pair: what lies outside may be multiplied with NaN. sum[i] +=
// sum_{k <= i} a[i][k] b[k], or, transposed, sum_{k >= i} a[k][i] b[k].
template <bool kTransposeA, class Arithmetic>
ATTN_DEVICE void add_triangle(ChunkSum<Arithmetic>& sum, ChunkTile<Arithmetic> a,
                              ChunkTile<Arithmetic> b) {
  sum.for_each([&](int row, int column, auto& x) {
    const int begin = kTransposeA ? row : 0, end = kTransposeA ? Arithmetic::kEdge : row + 1;
    for (int k = begin; k < end; ++k)
      x += (kTransposeA ? a.get(k, row) : a.get(row, k)) * b.get(k, column);
  });
}

}  // namespace attn::cuda
