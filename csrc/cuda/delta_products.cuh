// Products of a chunk of the delta rule. Its matrices are functions of (row, column), made where
// they are needed of what lies in memory, and go through shared memory one square at a time.
#pragma once

#include "cuda/chunk_products.cuh"

namespace attn::cuda {

// How elements of kDtype are computed with: on tensor cores each number is the sum of two of
// bfloat16, which have the range of float and together 16 bits, so that neither states nor solving
// for the errors loses more than a plain float product of rounded inputs.
template <class T>
struct DeltaPlain {
  using Arithmetic = PlainArithmetic<T>;
  static constexpr int kTerms = 1;
  static ATTN_DEVICE Dtype dtype(Dtype given) { return given; }
};
template <Dtype kDtype>
struct DeltaTensor {
  using Arithmetic = TensorArithmetic<Dtype::kBFloat16>;
  static constexpr int kTerms = 2;
  static ATTN_DEVICE Dtype dtype(Dtype) { return kDtype; }
};

template <class T>
ATTN_DEVICE bool is_finite(T x) {
  return x - x == T(0);
}

// A square matrix in shared memory, as the sum of its tiles.
template <class Kind>
class Operand {
  using Arithmetic = typename Kind::Arithmetic;
  using T = typename Arithmetic::Sum;
  static constexpr int kEdge = Arithmetic::kEdge, kThreads = Arithmetic::kThreads;
  static constexpr int kWidth = Arithmetic::kTensor ? 2 : 1;  // elements side by side of a thread
  static constexpr int kCount = kEdge * kEdge / kThreads / kWidth, kAtOnce = 4;

 public:
  static constexpr size_t kBytes = Kind::kTerms * ChunkTile<Arithmetic>::bytes();

  ATTN_DEVICE explicit Operand(unsigned char* shared) : shared_(shared) {}

  ATTN_DEVICE ChunkTile<Arithmetic> tile(int term) const {
    return ChunkTile<Arithmetic>(shared_ + term * ChunkTile<Arithmetic>::bytes());
  }

  // Elements f(row, column); returns whether those of this thread are finite.
  template <class F>
  ATTN_DEVICE bool fill(F f) const {
    bool finite = true;
    ATTN_ROLLED
    for (int first = 0; first < kCount; first += kAtOnce) {
      ATTN_UNROLL
      for (int n = 0; n < kAtOnce; ++n) {
        const int e = (static_cast<int>(threadIdx.x) + (first + n) * kThreads) * kWidth;
        const int row = e / kEdge, column = e % kEdge;
        const T x = f(row, column);
        finite = finite && is_finite(x);
        if constexpr (Arithmetic::kTensor) {
          const T y = f(row, column + 1);
          finite = finite && is_finite(y);
          set_pair(row, column, x, y);
        } else {
          tile(0).set(row, column, x);
        }
      }
    }
    return finite;
  }

 private:
  unsigned char* shared_;

  ATTN_DEVICE void set_pair(int row, int column, T x, T y) const {
    const uint32_t high = pack<Dtype::kBFloat16>(x, y);
    tile(0).set_pair(row, column, x, y);
    tile(1).set_pair(row, column, rest(x, high), rest(y, high >> 16));
  }
  static ATTN_DEVICE T rest(T x, uint32_t high) {
    const T difference = x - unpack<Dtype::kBFloat16>(high);
    return is_finite(difference) ? difference : T(0);
  }
};

// add(a tile, b tile) for all pairs of terms but the smallest.
template <class Kind, class Add>
ATTN_DEVICE void for_terms(Operand<Kind> a, Operand<Kind> b, Add add) {
  if constexpr (Kind::kTerms == 2) {
    add(a.tile(1), b.tile(0));
    add(a.tile(0), b.tile(1));
  }
  add(a.tile(0), b.tile(0));
}

template <class Kind>
class DeltaProducts {
  using Arithmetic = typename Kind::Arithmetic;
  using T = typename Arithmetic::Sum;
  static constexpr int kEdge = Arithmetic::kEdge;

 public:
  using Sum = ChunkSum<Arithmetic>;
  static constexpr size_t kBytes = 2 * Operand<Kind>::kBytes;

  ATTN_DEVICE explicit DeltaProducts(unsigned char* shared)
      : a_(shared), b_(shared + Operand<Kind>::kBytes), scratch_(reinterpret_cast<T*>(shared)) {}

  // sum += a' b', where a' is a or transposed, so is b', and the product sums over `depth`. What a
  // and b read has to be there for all threads. Ends with a barrier.
  template <bool kTransposeA, bool kTransposeB, class A, class B>
  ATTN_DEVICE void add(Sum& sum, int64_t depth, A a, B b) const {
    ATTN_ROLLED
    for (int64_t k = 0; k < depth; k += kEdge) {
      fill<kTransposeA>(a_, k, depth, a);
      fill<!kTransposeB>(b_, k, depth, b);
      __syncthreads();
      const int part = static_cast<int>(min64(depth - k + 15, kEdge)) / 16 * 16;
      for_terms(a_, b_, [&](auto x, auto y) {
        add_product<kTransposeA, kTransposeB>(sum, x, y, Depth{part});
      });
      __syncthreads();
    }
  }

  // The same of a triangle of n rows a[i][k], k <= i, which is 0 elsewhere, with b: what of b is
  // not finite stays out of the rows that don't see it.
  template <bool kTransposeA, class A, class B>
  ATTN_DEVICE void add_lower(Sum& sum, int n, A a, B b) const {
    fill<kTransposeA>(a_, 0, n, a);
    const bool finite = fill<true>(b_, 0, n, b);
    if (__syncthreads_or(!finite)) {
      transform(sum, [&](int row, int column, T x) {
        for (int k = kTransposeA ? row : 0; k < (kTransposeA ? n : row + 1); ++k)
          x += (kTransposeA ? a(k, row) : a(row, k)) * b(k, column);
        return x;
      });
      return;
    }
    for_terms(a_, b_, [&](auto x, auto y) {
      add_product<kTransposeA, false>(sum, x, y, Depth{(n + 15) / 16 * 16});
    });
    __syncthreads();
  }

  // Two ways through the memory of the operands, which nobody may be reading, with neighbouring
  // columns in neighbouring threads. Both end with a barrier. x <- f(row, column, x):
  template <class F>
  ATTN_DEVICE void transform(Sum& sum, F f) const {
    for_each(sum, [&](int row, int column, T& x) { x = f(row, column, x); });
    sum.for_each([&](int row, int column, T& x) { x = scratch(row, column); });
    __syncthreads();
  }
  // f(row, column, x):
  template <class F>
  ATTN_DEVICE void for_each(Sum& sum, F f) const {
    sum.for_each([&](int row, int column, T x) { scratch(row, column) = x; });
    __syncthreads();
    for_elements([&](int row, int column) { f(row, column, scratch(row, column)); });
    __syncthreads();
  }

 private:
  Operand<Kind> a_, b_;
  T* scratch_;

  ATTN_DEVICE T& scratch(int row, int column) const {
    static_assert(kEdge * (kEdge + 1) * sizeof(T) <= kBytes);
    return scratch_[row * (kEdge + 1) + column];
  }
  template <class F>
  static ATTN_DEVICE void for_elements(F f) {
    ATTN_ROLLED
    for (int e = static_cast<int>(threadIdx.x); e < kEdge * kEdge; e += Arithmetic::kThreads)
      f(e / kEdge, e % kEdge);
  }

  // A square of f from k on along its rows or columns, 0 behind `depth`.
  template <bool kAlongRows, class F>
  static ATTN_DEVICE bool fill(Operand<Kind> to, int64_t k, int64_t depth, F f) {
    return to.fill([&](int row, int column) {
      if constexpr (kAlongRows)
        return k + row < depth ? f(k + row, int64_t{column}) : T(0);
      else
        return k + column < depth ? f(int64_t{row}, k + column) : T(0);
    });
  }
};

}  // namespace attn::cuda
