// Linear attention backward, the sweep back with the state's gradient R: dkey, dvalue, ddecay and
// the initial state's gradient of one part. Included by kernels.inl.

template <class A>
class LinearKeySweep : LinearGradPass<A> {
  using Base = LinearGradPass<A>;
  using Base::channel_;
  using Base::D_;
  using Base::decays_;
  using Base::Dv_;
  using Base::grad_;
  using Base::grads_;
  using Base::key_lanes_;
  using Base::ldk_;
  using Base::ldv_;
  using Base::p_;
  using Base::query_rows_;
  using Base::terms_;
  using Base::W;
  static constexpr int kChunk = kTileLanes<A>;

 public:
  LinearKeySweep(const LinearGradParams& p, Arena& arena) : Base(p, arena) {
    faded_key_lanes_ = channel_ ? arena.take<A>(int64_t{D_} * kChunk) : key_lanes_;
    value_lanes_ = arena.take<A>(int64_t{Dv_} * kChunk);
    fade_lanes_ = channel_ ? arena.take<A>(int64_t{D_} * kChunk) : nullptr;
    scores_ = p.causal ? arena.take<A>(kChunk * kChunk) : nullptr;
    products_ = p.causal ? arena.take<A>(kChunk * kChunk) : nullptr;
    key_grads_ = arena.take<A>(int64_t{D_} * kChunk);
    value_grads_ = arena.take<A>(int64_t{Dv_} * kChunk);
    rows_ = this->take_rows(arena, D_, ldk_);
    diagonal_rows_ = decays_ ? this->take_rows(arena, D_, ldk_) : nullptr;
  }

  void run_item(int64_t item) {
    this->start(item);
    if (p_.needs_scan())
      this->copy(this->part_state(p_.part_grads, p_.causal ? this->part_ : 0), grad_);
    else
      this->load_state(p_.grad_state, p_.grad_z, grad_);
    const Range keys = p_.keys(this->sequence_, this->part_);
    const int64_t step = this->step();
    const int64_t chunks = keys.empty() ? 0 : (keys.end - keys.begin + step - 1) / step;
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t i = keys.begin + chunk * step;
      visit(i, static_cast<int>(min64(step, keys.end - i)));
    }
    const Range padded = p_.keys(this->sequence_, this->part_, true);
    if (p_.dkey) this->clear_rows(p_.dkey, this->hs_, padded, D_);
    if (p_.dvalue) this->clear_rows(p_.dvalue, this->hs_, padded, Dv_);
    if (p_.ddecay) this->clear_rows(p_.ddecay, this->hs_, padded, channel_ ? D_ : 1);
    if (this->part_ == 0) this->store_state(grad_, p_.dinitial, p_.dinitial_z);
  }

 private:
  A *faded_key_lanes_, *value_lanes_;
  A* fade_lanes_;                // per channel the decay up to the chunk's end
  A *scores_, *products_;        // phi(q) . phi(k), g' . v'
  A *key_grads_, *value_grads_;  // dphi(k), dv
  A *rows_, *diagonal_rows_;
  A diagonal_[kChunk];

  void visit(int64_t i, int n) {
    this->load_keys(i, n);
    if (p_.causal && n > 1 && !queries_finite(i, n)) {
      for (int t = n - 1; t >= 0; --t) visit(i + t, 1);
      return;
    }
    if (n <= W)
      visit_chunk<1>(i, n);
    else
      visit_chunk<kMaxVectors>(i, n);
  }
  bool queries_finite(int64_t i, int n) {
    bool finite = this->decays_finite(n);
    for (int64_t g = 0; finite && g < p_.group(); ++g) {
      load_head(g, i, n);
      finite = rows_finite(query_rows_, ldk_, n, D_) && rows_finite(grads_, ldv_, n, Dv_) &&
               rows_finite(terms_, 0, 1, n);
    }
    return finite;
  }
  void load_head(int64_t g, int64_t i, int n) {
    this->load_queries(this->head(g), i, n);
    this->load_grads(this->head(g), i, n);
  }

  template <int NV>
  void visit_chunk(int64_t i, int n) {
    rows_to_lanes(this->keys_, ldk_, n, NV * W, D_, key_lanes_, kChunk);
    rows_to_lanes(this->values_, this->ld_values_, n, NV * W, Dv_, value_lanes_, kChunk);
    if (channel_) {
      rows_to_lanes(this->faded_keys_, ldk_, n, W, D_, faded_key_lanes_, kChunk);
      rows_to_lanes(this->tail_, ldk_, n, W, D_, fade_lanes_, kChunk);
    }
    for (int64_t g = 0; g < (p_.causal ? p_.group() : 1); ++g) visit_head<NV>(g, i, n);
    store_key_grads(i, n);
    store_value_grads(i, n);
    if (p_.ddecay && this->is_checkpoint(i)) {
      const int64_t end = p_.keys(this->sequence_, this->part_).end;
      this->store_decay_grads({i, min64(end, i + LinearGradParams::kCheckpoint)},
                              this->checkpoint(i));
    }
  }

  // The first head brings along what comes from R.
  template <int NV>
  void visit_head(int64_t g, int64_t i, int n) {
    if (p_.causal) {
      // Where there is one head, queries_finite has read it.
      if (p_.group() > 1 || n == 1) load_head(g, i, n);
      multiply<NV>(n);
      if (decays_) add_diagonal(g, n);
    }
    for_row_tiles<kRows>(0, Dv_,
                         [&]<int R>(int c) ATTN_INLINE_LAMBDA { value_gradient<R, NV>(g, c, n); });
    for_row_tiles<kRows>(0, D_,
                         [&]<int R>(int d) ATTN_INLINE_LAMBDA { key_gradient<R, NV>(g, d, n); });
    if (!p_.causal) return;
    if (channel_)
      add_channel_triangle<false>(products_, query_rows_, ldk_, this->a_, ldk_, n, D_, key_grads_);
    this->pass_queries(n, g == 0 ? this->factor() : nullptr);
  }

  template <int NV>
  void multiply(int n) {
    multiply_scores<false, A, NV>(grads_, ldv_, value_lanes_, n, Dv_,
                                  p_.normalize ? terms_ : nullptr, nullptr, products_);
    const A* a = decays_ ? this->a_ : nullptr;
    if constexpr (NV == 1)
      if (channel_) {
        for (int t = 0; t < n; ++t) diagonal_[t] = products_[t * kChunk + t];
        return multiply_channel_scores<false>(query_rows_, ldk_, key_lanes_, a, ldk_, n, D_,
                                              this->moving_, scores_);
      }
    weigh_scores<false, A, NV>(products_, n, a, decays_ ? diagonal_ : nullptr);
    multiply_scores<false, A, NV>(query_rows_, ldk_, key_lanes_, n, D_, nullptr, nullptr, scores_);
    weigh_scores<false, A, NV>(scores_, n, a, nullptr);
  }

  void add_diagonal(int64_t g, int n) {
    if (g == 0) memset(diagonal_rows_, 0, sizeof(A) * n * ldk_);
    this->add_rows(diagonal_, query_rows_, n, diagonal_rows_);
  }

  // dv[c][s] = sum_d R[d][c] phi(k)[d][s] + sum_t g[t][c] scores[t][s]
  template <int R, int NV>
  ATTN_INLINE void value_gradient(int64_t g, int c, int n) {
    Vec<A> sums[R][NV];
    if (g == 0) {
      multiply_tile<A, R, NV>(grad_.s + c, 1, ldv_, faded_key_lanes_, kChunk, D_, sums);
      if (decays_ && !channel_) this->fade(this->tail_, nullptr, sums);
    } else {
      this->load_sums(value_grads_ + c * kChunk, sums);
    }
    if (p_.causal) add_triangle<false, A, R, NV>(grads_ + c, 1, ldv_, scores_, n, sums);
    this->store_sums(sums, value_grads_ + c * kChunk);
  }

  // dphi(k)[d][s] = sum_c R[d][c] v[c][s] + Rz[d] + sum_t phi(q)[t][d] products[t][s]
  template <int R, int NV>
  ATTN_INLINE void key_gradient(int64_t g, int d, int n) {
    Vec<A> sums[R][NV];
    if (g == 0) {
      multiply_tile<A, R, NV>(grad_.s + d * ldv_, ldv_, 1, value_lanes_, kChunk, Dv_, sums);
      if (p_.normalize)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sums[r][v] += set1(grad_.z[d + r]);
      this->fade(this->tail_, fade_lanes_ + d * kChunk, sums);
    } else {
      this->load_sums(key_grads_ + d * kChunk, sums);
    }
    if (p_.causal && !channel_)
      add_triangle<false, A, R, NV>(query_rows_ + d, 1, ldk_, products_, n, sums);
    this->store_sums(sums, key_grads_ + d * kChunk);
  }

  void store_key_grads(int64_t i, int n) {
    if (!p_.dkey && !p_.ddecay) return;
    lanes_to_rows(key_grads_, kChunk, n, D_, rows_, ldk_);
    if (p_.ddecay) this->add_decay_terms(i, n, this->keys_, rows_, A(-1), false);
    if (!p_.dkey) return;
    for (int at = 0; decays_ && at < n * ldk_; at += W)
      store(rows_ + at, load(rows_ + at) + load(diagonal_rows_ + at));
    map_gradients(p_.map, this->keys_, rows_, n, ldk_);
    this->store_rows(rows_, ldk_, n, D_, p_.dkey, this->b_, this->hs_, i);
  }
  void store_value_grads(int64_t i, int n) {
    if (!p_.dvalue) return;
    A one[kChunk];
    char* rows[kChunk];
    for (int t = 0; t < kChunk; ++t) one[t] = 1;
    for (int t = 0; t < n; ++t) rows[t] = p_.dvalue.at(this->b_, this->hs_, i + t);
    unpack_lanes(value_grads_, kChunk, one, n, Dv_, rows, p_.dvalue.dtype, p_.dvalue.stride[3]);
  }
};

// The last pass: both sweeps of one part.
template <class A>
class LinearBackward {
 public:
  using Params = LinearGradParams;

  LinearBackward(const LinearGradParams& p, Arena& arena) : queries_(p, arena), keys_(p, arena) {}
  static int64_t items(const LinearGradParams& p) { return p.sequences * p.Hs * p.parts; }

  void run_item(int64_t item) {
    queries_.run_item(item);
    keys_.run_item(item);
  }

 private:
  LinearQuerySweep<A> queries_;
  LinearKeySweep<A> keys_;
};
