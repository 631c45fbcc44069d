// Linear attention backward, the sweep with the states: dquery of one part, and phi(q) dphi(q), of
// which the decay's gradient is made. Included by kernels.inl.

template <class A>
class LinearQuerySweep : LinearGradPass<A> {
  using Base = LinearGradPass<A>;
  using Base::channel_;
  using Base::D_;
  using Base::decays_;
  using Base::Dv_;
  using Base::grads_;
  using Base::ldk_;
  using Base::ldv_;
  using Base::p_;
  using Base::query_rows_;
  using Base::state_;
  using Base::terms_;
  using Base::W;
  static constexpr int kChunk = kTileLanes<A>;

 public:
  LinearQuerySweep(const LinearGradParams& p, Arena& arena) : Base(p, arena) {
    grad_lanes_ = arena.take<A>(int64_t{Dv_} * kChunk);
    fade_lanes_ = channel_ ? arena.take<A>(int64_t{D_} * kChunk) : nullptr;
    products_ = p.causal ? arena.take<A>(kChunk * kChunk) : nullptr;
    sums_ = arena.take<A>(int64_t{D_} * kChunk);
    rows_ = this->take_rows(arena, D_, ldk_);
  }

  void run_item(int64_t item) {
    this->start(item);
    if (p_.needs_scan())
      this->copy(this->part_state(p_.part_states, p_.causal ? this->part_ : 0), state_);
    else
      this->load_state(p_.initial, p_.initial_z, state_);
    if (!p_.dquery && !p_.ddecay) return;
    const Range queries = p_.queries(this->sequence_, this->part_);
    for (int64_t i = queries.begin; i < queries.end; i += this->step())
      visit(i, static_cast<int>(min64(this->step(), queries.end - i)));
    if (p_.causal && p_.dquery) {
      const Range padded = p_.keys(this->sequence_, this->part_, true);
      for (int64_t g = 0; g < p_.group(); ++g)
        this->clear_rows(p_.dquery, this->head(g), padded, D_);
    }
  }

 private:
  A *grad_lanes_, *fade_lanes_;  // g, and per channel the decay from the chunk's beginning
  A* products_;                  // g' . v'
  A *sums_, *rows_;              // dphi(q)
  A diagonal_[kChunk];

  void visit(int64_t i, int n) {
    if (p_.causal) {
      if (this->is_checkpoint(i)) this->copy(state_, this->checkpoint(i));
      this->load_keys(i, n);
      if (n > 1 && !this->keys_finite(n)) {
        for (int t = 0; t < n; ++t) visit(i + t, 1);
        return;
      }
      if (channel_) rows_to_lanes(this->head_, ldk_, n, W, D_, fade_lanes_, kChunk);
    }
    for (int64_t g = 0; g < p_.group(); ++g) {
      if (n <= W)
        visit_head<1>(g, i, n);
      else
        visit_head<kMaxVectors>(g, i, n);
    }
    if (p_.causal) this->pass_keys(n);
  }

  template <int NV>
  void visit_head(int64_t g, int64_t i, int n) {
    this->load_queries(this->head(g), i, n);
    this->load_grads(this->head(g), i, n);
    rows_to_lanes(grads_, ldv_, n, NV * W, Dv_, grad_lanes_, kChunk);
    if (p_.causal) multiply<NV>(n);
    for_row_tiles<kRows>(0, D_, [&]<int R>(int d) ATTN_INLINE_LAMBDA { gradient<R, NV>(d, n); });
    if (channel_)
      add_channel_triangle<true>(products_, this->keys_, ldk_, this->a_, ldk_, n, D_, sums_);
    lanes_to_rows(sums_, kChunk, n, D_, rows_, ldk_);
    if (decays_) {
      if (p_.ddecay) this->add_decay_terms(i, n, query_rows_, rows_, A(1), g == 0);
      this->add_rows(diagonal_, this->keys_, n, rows_);
    }
    if (!p_.dquery) return;
    map_gradients(p_.map, query_rows_, rows_, n, ldk_);
    this->store_rows(rows_, ldk_, n, D_, p_.dquery, this->b_, this->head(g), i);
  }

  template <int NV>
  void multiply(int n) {
    multiply_scores<true, A, NV>(this->values_, this->ld_values_, grad_lanes_, n, Dv_, nullptr,
                                 p_.normalize ? terms_ : nullptr, products_);
    if (channel_)
      for (int t = 0; t < n; ++t) diagonal_[t] = products_[t * kChunk + t];
    else
      weigh_scores<true, A, NV>(products_, n, decays_ ? this->a_ : nullptr,
                                decays_ ? diagonal_ : nullptr);
  }

  // dphi(q)[d][t] = sum_c S[d][c] g[c][t] + z[d] terms[t] + sum_s phi(k)[s][d] products[s][t]
  template <int R, int NV>
  ATTN_INLINE void gradient(int d, int n) {
    Vec<A> sums[R][NV];
    multiply_tile<A, R, NV>(state_.s + d * ldv_, ldv_, 1, grad_lanes_, kChunk, Dv_, sums);
    if (p_.normalize)
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v)
          sums[r][v] = fma(set1(state_.z[d + r]), load(terms_ + v * W), sums[r][v]);
    this->fade(this->head_, fade_lanes_ + d * kChunk, sums);
    if (p_.causal && !channel_)
      add_triangle<true, A, R, NV>(this->keys_ + d, 1, ldk_, products_, n, sums);
    this->store_sums(sums, sums_ + d * kChunk);
  }
};
