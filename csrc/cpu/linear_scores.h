// Products inside one chunk of linear attention. A score matrix has one (row, lane) pair per (key,
// query): keys are rows in the sweep towards the end, where lane >= row is allowed, and queries are
// rows in the sweep back, where lane <= row is. The pair's weight is the product of the decays a[u]
// for u from the key, excluded, to the query; each is at most 1, so nothing can overflow. Included
// by kernels.inl.

template <class A>
constexpr int kTileLanes = kMaxVectors * kLanes<A>;

// sums[r][v] += sum_{k < depth} scalars[r * step_r + k * step_k] * lanes[k * ld + v * W ...] for v
// from V0 to V1
template <class A, int R, int NV, int V0 = 0, int V1 = NV>
ATTN_INLINE void add_products(const A* ATTN_RESTRICT scalars, int64_t step_r, int64_t step_k,
                              const A* ATTN_RESTRICT lanes, int64_t ld, int depth,
                              Vec<A> (&sums)[R][NV]) {
#pragma GCC unroll 1
  for (int k = 0; k < depth; ++k) {
    Vec<A> x[NV];
#pragma GCC unroll 4
    for (int v = V0; v < V1; ++v) x[v] = load(lanes + k * ld + v * kLanes<A>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<A> y = set1(scalars[r * step_r + k * step_k]);
#pragma GCC unroll 4
      for (int v = V0; v < V1; ++v) sums[r][v] = fma(y, x[v], sums[r][v]);
    }
  }
}

// Which vectors of lanes the rows of vector-sized block J may reach.
template <bool kKeysAreRows, int NV, int J>
struct Reach {
  static constexpr int kBegin = kKeysAreRows ? J : 0, kEnd = kKeysAreRows ? NV : J + 1;
};

// sums[r][lane] += sum_{k < n} scalars[r * step_r + k * step_k] * scores[k][lane]
template <bool kKeysAreRows, class A, int R, int NV, int J = 0>
ATTN_INLINE void add_triangle(const A* scalars, int64_t step_r, int64_t step_k, const A* scores,
                              int n, Vec<A> (&sums)[R][NV]) {
  constexpr int W = kLanes<A>;
  if constexpr (J < NV) {
    if (J * W < n) {
      using Lanes = Reach<kKeysAreRows, NV, J>;
      add_products<A, R, NV, Lanes::kBegin, Lanes::kEnd>(
          scalars + J * W * step_k, step_r, step_k, scores + J * W * kTileLanes<A>, kTileLanes<A>,
          n - J * W < W ? n - J * W : W, sums);
      add_triangle<kKeysAreRows, A, R, NV, J + 1>(scalars, step_r, step_k, scores, n, sums);
    }
  }
}

// scores[r][lane] = sum_d rows[r][d] * lanes[d][lane] + (row_terms[r]) + (lane_terms[lane]) where a
// row of the block may reach the lane
template <bool kKeysAreRows, class A, int NV, int J = 0>
void multiply_scores(const A* rows, int64_t ld_rows, const A* lanes, int n, int depth,
                     const A* row_terms, const A* lane_terms, A* scores) {
  constexpr int W = kLanes<A>;
  if constexpr (J < NV) {
    if (J * W >= n) return;
    constexpr int kBegin = Reach<kKeysAreRows, NV, J>::kBegin;
    constexpr int kCount = Reach<kKeysAreRows, NV, J>::kEnd - kBegin;
    for_row_tiles<kRows>(
        J * W, n < (J + 1) * W ? n : (J + 1) * W, [&]<int R>(int r) ATTN_INLINE_LAMBDA {
          Vec<A> sums[R][kCount];
          multiply_tile<A, R, kCount>(rows + r * ld_rows, ld_rows, 1, lanes + kBegin * W,
                                      kTileLanes<A>, depth, sums);
#pragma GCC unroll 16
          for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < kCount; ++v) {
              Vec<A> x = sums[i][v];
              if (row_terms) x += set1(row_terms[r + i]);
              if (lane_terms) x += load(lane_terms + (kBegin + v) * W);
              store(scores + (r + i) * kTileLanes<A> + (kBegin + v) * W, x);
            }
        });
    multiply_scores<kKeysAreRows, A, NV, J + 1>(rows, ld_rows, lanes, n, depth, row_terms,
                                                lane_terms, scores);
  }
}

// Scores of pairs that are not allowed become 0, the others are weighted where a is given. With
// `diagonal` the pairs (i, i) go there instead.
template <bool kKeysAreRows, class A, int NV>
void weigh_scores(A* scores, int n, const A* a, A* diagonal) {
  constexpr int W = kLanes<A>;
  const Vec<A> one = set1(A(1)), lane = iota<A>();
  Vec<A> weight[NV] = {};
  for (int step = 0; step < n; ++step) {
    const int r = kKeysAreRows ? n - 1 - step : step, block = r / W;
    A* row = scores + r * kTileLanes<A>;
    if (diagonal) diagonal[r] = row[r];
    const Vec<A> own = set1(static_cast<A>(r % W));
    const Vec<A> factor = !a ? one : step == 0 ? Vec<A>{} : set1(a[kKeysAreRows ? r + 1 : r]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      if (kKeysAreRows ? v < block : v > block) continue;
      const bool mixed = v == block;
      Vec<A> w = a ? weight[v] * factor : one;
      if (mixed && a) w = select<A>(lane == own, one, w);
      weight[v] = w;
      Vec<A> x = load(row + v * W) * w;
      if (mixed) {
        x = select<A>(kKeysAreRows ? lane >= own : lane <= own, x, Vec<A>{});
        if (diagonal) x = select<A>(lane == own, Vec<A>{}, x);
      }
      store(row + v * W, x);
    }
  }
}

// The same for decays of each channel, a[u][d], in chunks of one vector of lanes:
// scores[r][lane] = sum_d rows[r][d] * lanes[d][lane] * product of a[u][d], 0 where not allowed.
// `moving` has one vector per d.
template <bool kKeysAreRows, class A>
void multiply_channel_scores(const A* rows, int64_t ld_rows, const A* lanes, const A* a, int ld_a,
                             int n, int depth, A* moving, A* scores) {
  constexpr int W = kLanes<A>;
  memset(moving, 0, sizeof(A) * depth * W);
  for (int step = 0; step < n; ++step) {
    const int r = kKeysAreRows ? n - 1 - step : step;
    const A* factor = a + (kKeysAreRows && step ? r + 1 : r) * ld_a;
    const IntVec<A> own = iota<A>() == set1(static_cast<A>(r));
    Vec<A> sum{};
    for (int d = 0; d < depth; ++d) {
      const Vec<A> y =
          select<A>(own, load(lanes + d * kTileLanes<A>), load(moving + d * W) * set1(factor[d]));
      store(moving + d * W, y);
      sum = fma(set1(rows[r * ld_rows + d]), y, sum);
    }
    store(scores + r * kTileLanes<A>, sum);
  }
}

// out[d][lane] += sum_r scores[r][lane] * rows[r][d] * product of a[u][d], without the pairs (i,
// i).
template <bool kKeysAreRows, class A>
void add_channel_triangle(const A* scores, const A* rows, int64_t ld_rows, const A* a, int ld_a,
                          int n, int depth, A* out) {
  for (int d = 0; d < depth; ++d) {
    Vec<A> weight{}, sum = load(out + d * kTileLanes<A>);
    for (int step = 0; step < n; ++step) {
      const int r = kKeysAreRows ? n - 1 - step : step;
      weight *= set1(a[(kKeysAreRows && step ? r + 1 : r) * ld_a + d]);
      sum = fma(weight * load(scores + r * kTileLanes<A>), set1(rows[r * ld_rows + d]), sum);
      weight = select<A>(iota<A>() == set1(static_cast<A>(r)), set1(A(1)), weight);
    }
    store(out + d * kTileLanes<A>, sum);
  }
}
