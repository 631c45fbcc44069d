// The register-blocked loops under every operator. "Lanes" arrays hold one element per lane in their fastest
// dimension, kTileLanes of them a row; "rows" arrays are read in their natural layout, one scalar broadcast
// a time, so that keys, values and queries need no packing. Included by kernels.inl.
//
// Register budget: R * NV accumulators, NV lane vectors and one broadcast: 28 of 32 (AVX-512), 16 of 16 (AVX2).

#if ATTN_VECTOR_BYTES == 64
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int kMaxVectors = 3;

// tile.operator()<R>(i) for i from begin to end in steps of R: as many of kMaxRows, then of a half, a quarter ... of it.
template <int kMaxRows, class Tile>
ATTN_INLINE void for_row_tiles(int begin, int end, const Tile& tile) {
  for (; begin + kMaxRows <= end; begin += kMaxRows) tile.template operator()<kMaxRows>(begin);
  if constexpr (kMaxRows > 1)
    if (begin < end) for_row_tiles<kMaxRows / 2>(begin, end, tile);
}

// a[r][v] = sum_d rows[r][d] * lanes[d][v]
template <class A, int R, int NV>
ATTN_INLINE void dot_tile(const A* ATTN_RESTRICT rows, int64_t ld_rows, const A* ATTN_RESTRICT lanes, int ld_lanes,
                          int depth, Vec<A> (&a)[R][NV]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) a[r][v] = Vec<A>{};
#pragma GCC unroll 1
  for (int d = 0; d < depth; ++d) {
    Vec<A> x[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) x[v] = load(lanes + d * ld_lanes + v * kLanes<A>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<A> y = set1(rows[r * ld_rows + d]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) a[r][v] = fma(y, x[v], a[r][v]);
    }
  }
}

// o[c][v] = o[c][v] * alpha[v] + sum_j weights[j][v] * rows[j][c] for R columns c. The sum starts at 0 and is added
// whole: the rounding error of a long sequence then grows with the number of blocks, not of terms.
template <class A, int R, int NV>
ATTN_INLINE void accumulate_tile(const A* ATTN_RESTRICT weights, int ld, const A* ATTN_RESTRICT rows, int64_t ld_rows,
                                 int n, const Vec<A>* alpha, A* ATTN_RESTRICT o) {
  Vec<A> a[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) a[r][v] = Vec<A>{};
#pragma GCC unroll 1
  for (int j = 0; j < n; ++j) {
    Vec<A> x[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) x[v] = load(weights + j * ld + v * kLanes<A>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<A> y = set1(rows[j * ld_rows + r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) a[r][v] = fma(y, x[v], a[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      A* at = o + r * ld + v * kLanes<A>;
      store(at, alpha ? fma(load(at), alpha[v], a[r][v]) : load(at) + a[r][v]);
    }
}

// All columns: o[c][lanes] = o[c][lanes] * alpha + sum_j weights[j][lanes] * rows[j][c], c < columns
template <class A, int NV>
void accumulate_lanes(const A* weights, int ld, const A* rows, int64_t ld_rows, int n, int columns,
                      const Vec<A>* alpha, A* o) {
  for_row_tiles<kRows>(0, columns, [&]<int R>(int c) ATTN_INLINE_LAMBDA {
    accumulate_tile<A, R, NV>(weights, ld, rows + c, ld_rows, n, alpha, o + c * ld);
  });
}

// o[i][c] += sum_j weights[i][j] * rows[j][c] for R rows i and NV vectors of columns c
template <class A, int R, int NV>
ATTN_INLINE void accumulate_row_tile(const A* ATTN_RESTRICT weights, int ld, const A* ATTN_RESTRICT rows,
                                     int64_t ld_rows, int n, A* ATTN_RESTRICT o, int64_t ld_o) {
  Vec<A> a[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) a[r][v] = Vec<A>{};
#pragma GCC unroll 1
  for (int j = 0; j < n; ++j) {
    Vec<A> x[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) x[v] = load(rows + j * ld_rows + v * kLanes<A>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<A> y = set1(weights[r * ld + j]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) a[r][v] = fma(y, x[v], a[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      A* at = o + r * ld_o + v * kLanes<A>;
      store(at, load(at) + a[r][v]);
    }
}

// o[i][c] += sum_j weights[i][j] * rows[j][c] for i < m, j < n and `columns`, a multiple of the vector, c
template <class A>
void accumulate_rows(const A* weights, int ld, const A* rows, int64_t ld_rows, int m, int n, int columns, A* o,
                     int64_t ld_o) {
  constexpr int W = kLanes<A>, kWide = ATTN_VECTOR_BYTES == 64 ? 4 : 2;
  for_row_tiles<kWide>(0, columns / W, [&]<int NV>(int vector) ATTN_INLINE_LAMBDA {
    const int c = vector * W;
    for_row_tiles<6>(0, m, [&]<int R>(int i) ATTN_INLINE_LAMBDA {
      accumulate_row_tile<A, R, NV>(weights + i * ld, ld, rows + c, ld_rows, n, o + i * ld_o + c, ld_o);
    });
  });
}
