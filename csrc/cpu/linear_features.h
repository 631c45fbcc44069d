// Feature maps on rows of a tile, and tiles turned from rows to lanes and back. Included by
// kernels.inl.

// Lanes 0 .. count-1 of x, 0 behind.
template <class A>
ATTN_INLINE Vec<A> first_lanes(Vec<A> x, int count) {
  return count >= kLanes<A> ? x : select<A>(iota<A>() < set1(static_cast<A>(count)), x, Vec<A>{});
}

template <class A>
ATTN_INLINE Vec<A> exp(Vec<A> x) {
  return exp2(x * set1(static_cast<A>(kLog2e)));
}

template <class A>
void softmax_row(A* row, int D) {
  constexpr int W = kLanes<A>;
  A largest = row[0], sum = 0;
  for (int d = 1; d < D; ++d) largest = row[d] > largest ? row[d] : largest;
  for (int d = 0; d < D; d += W) {
    const Vec<A> e = first_lanes<A>(exp<A>(load(row + d) - set1(largest)), D - d);
    store(row + d, e);
    sum += sum_lanes<A>(e);
  }
  for (int d = 0; d < D; d += W) store(row + d, load(row + d) / set1(sum));
}

// x <- phi(x) for n rows of D columns; ld is D rounded up to whole vectors, the columns behind D
// stay 0.
template <class A>
void map_features(FeatureMap map, A* rows, int n, int D, int ld) {
  if (map == FeatureMap::kIdentity) return;
  for (A* row = rows; row < rows + n * ld; row += ld) {
    if (map == FeatureMap::kSoftmax) {
      softmax_row(row, D);
      continue;
    }
    for (int d = 0; d < D; d += kLanes<A>) {
      const Vec<A> x = load(row + d), positive = max<A>(Vec<A>{}, x);
      const Vec<A> phi = map == FeatureMap::kRelu ? positive : exp<A>(x - positive) + positive;
      store(row + d, first_lanes<A>(phi, D - d));
    }
  }
}

template <class A>
A dot_rows(const A* x, const A* y, int ld) {
  Vec<A> sum{};
  for (int d = 0; d < ld; d += kLanes<A>) sum = fma(load(x + d), load(y + d), sum);
  return sum_lanes<A>(sum);
}

// dphi <- dx for n rows, given phi
template <class A>
void map_gradients(FeatureMap map, const A* phi, A* dphi, int n, int ld) {
  if (map == FeatureMap::kIdentity) return;
  const Vec<A> one = set1(A(1));
  for (int i = 0; i < n; ++i, phi += ld, dphi += ld) {
    const Vec<A> mean = set1(map == FeatureMap::kSoftmax ? dot_rows(phi, dphi, ld) : A(0));
    for (int d = 0; d < ld; d += kLanes<A>) {
      const Vec<A> x = load(phi + d), g = load(dphi + d);
      if (map == FeatureMap::kSoftmax)
        store(dphi + d, x * (g - mean));
      else if (map == FeatureMap::kRelu)
        store(dphi + d, select<A>(x > Vec<A>{}, g, Vec<A>{}));
      else
        store(dphi + d, g * select<A>(x < one, x, one));
    }
  }
}

// lanes[c][i] = rows[i][c] for i < n, 0 up to `count` lanes, a multiple of the vector.
template <class A>
void rows_to_lanes(const A* rows, int64_t ld_rows, int n, int count, int columns, A* lanes,
                   int ld) {
  constexpr int W = kLanes<A>;
  for (int lane = 0; lane < count; lane += W)
    for (int c = 0; c < columns; c += W) {
      Vec<A> x[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        x[i] = lane + i < n ? load(rows + (lane + i) * ld_rows + c) : Vec<A>{};
      transpose<A>(x);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (c + i < columns) store(lanes + (c + i) * ld + lane, x[i]);
    }
}

// rows[i][c] = lanes[c][i] for i < n; the columns up to the next whole vector become 0.
template <class A>
void lanes_to_rows(const A* lanes, int ld, int n, int columns, A* rows, int ld_rows) {
  constexpr int W = kLanes<A>;
  for (int lane = 0; lane < n; lane += W)
    for (int c = 0; c < columns; c += W) {
      Vec<A> x[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        x[i] = c + i < columns ? load(lanes + (c + i) * ld + lane) : Vec<A>{};
      transpose<A>(x);
      for (int i = 0; i < W && lane + i < n; ++i) store(rows + (lane + i) * ld_rows + c, x[i]);
    }
}
