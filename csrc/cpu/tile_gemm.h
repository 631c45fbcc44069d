// The register-blocked loops under every operator. "Lanes" arrays hold one element per lane in
// their fastest dimension; "rows" arrays are read in their natural layout, one scalar broadcast at
// a time, so that keys, values and queries need no packing. Included by kernels.inl.
//
// Register budget: R * NV sums, NV lane vectors and one broadcast: 28 of 32 (AVX-512), 16 of 16
// (AVX2).

#if ATTN_VECTOR_BYTES == 64
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int kMaxVectors = 3;

// tile.operator()<R>(i) for i from begin to end in steps of R: as many of kMaxRows, then of a half,
// a quarter ... of it.
template <int kMaxRows, class Tile>
ATTN_INLINE void for_row_tiles(int begin, int end, const Tile& tile) {
  for (; begin + kMaxRows <= end; begin += kMaxRows) tile.template operator()<kMaxRows>(begin);
  if constexpr (kMaxRows > 1)
    if (begin < end) for_row_tiles<kMaxRows / 2>(begin, end, tile);
}

// sums[r][v] = sum_{k < depth} scalars[r * step_r + k * step_k] * lanes[k * ld + v * W ...], where
// a scalar and a lane are an operand each: a pair in bfloat16
template <class E, int R, int NV>
ATTN_INLINE void multiply_tile(const Scalar<E>* ATTN_RESTRICT scalars, int64_t step_r,
                               int64_t step_k, const Lane<E>* ATTN_RESTRICT lanes, int64_t ld,
                               int64_t depth, Vec<Compute<E>> (&sums)[R][NV]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[r][v] = Vec<Compute<E>>{};
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; ++k) {
    LaneVec<E> x[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) x[v] = load_lanes<E>(lanes + k * ld + v * kLanes<Compute<E>>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const LaneVec<E> y = broadcast<E>(scalars + r * step_r + k * step_k);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[r][v] = multiply_add<E>(y, x[v], sums[r][v]);
    }
  }
}

// o[r][v] = o[r][v] * alpha[v] + sums[r][v]; without alpha it counts as 1. The sums of a tile start
// at 0 and are added whole: the rounding error of a long sequence then grows with the number of
// tiles, not of terms.
template <class A, int R, int NV>
ATTN_INLINE void add_tile(const Vec<A> (&sums)[R][NV], const Vec<A>* alpha, A* ATTN_RESTRICT o,
                          int64_t ld) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      A* at = o + r * ld + v * kLanes<A>;
      store(at, alpha ? fma(load(at), alpha[v], sums[r][v]) : load(at) + sums[r][v]);
    }
}

// o[c][lanes] = o[c][lanes] * alpha + sum_{j < n} weights[j][lanes] * rows[j][c] for c < columns.
// Pairs of bfloat16 are (j, j + 1): rows are interleaved (interleave_rows).
template <class E, int NV>
void accumulate_lanes(const Lane<E>* weights, int ld, const Scalar<E>* rows, int64_t ld_rows, int n,
                      int columns, const Vec<Compute<E>>* alpha, Compute<E>* o) {
  for_row_tiles<kRows>(0, columns, [&]<int R>(int c) ATTN_INLINE_LAMBDA {
    Vec<Compute<E>> sums[R][NV];
    multiply_tile<E, R, NV>(rows + c * kPair<E>, kPair<E>, ld_rows * kPair<E>, weights, ld,
                            steps<E>(n), sums);
    add_tile<Compute<E>, R, NV>(sums, alpha, o + c * ld, ld);
  });
}

// o[i][c] += sum_{j < n} weights[i][j] * rows[j][c] for i < m and c < columns, a multiple of the
// vector; pairs as above
template <class E>
void accumulate_rows(const Scalar<E>* weights, int ld, const Lane<E>* rows, int64_t ld_rows, int m,
                     int n, int columns, Compute<E>* o, int64_t ld_o) {
  constexpr int W = kLanes<Compute<E>>, kWide = ATTN_VECTOR_BYTES == 64 ? 4 : 2;
  for_row_tiles<kWide>(0, columns / W, [&]<int NV>(int vector) ATTN_INLINE_LAMBDA {
    const int c = vector * W;
    for_row_tiles<6>(0, m, [&]<int R>(int i) ATTN_INLINE_LAMBDA {
      Vec<Compute<E>> sums[R][NV];
      multiply_tile<E, R, NV>(weights + i * ld, ld, kPair<E>, rows + c, ld_rows, steps<E>(n), sums);
      add_tile<Compute<E>, R, NV>(sums, nullptr, o + i * ld_o + c, ld_o);
    });
  });
}
