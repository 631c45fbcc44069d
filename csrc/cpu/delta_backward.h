// Delta rule backward, the last pass: all gradients of one part, stretch by stretch from its end,
// given the states every kCheckpoint tokens and R at the part's end (delta_pass.h). Included by
// kernels.inl.

template <class A>
class DeltaBackward : DeltaGradPass<A> {
  using Base = DeltaGradPass<A>;
  using Base::channel_;
  using Base::chunk_;
  using Base::D_;
  using Base::decays_;
  using Base::Dv_;
  using Base::grad_;
  using Base::grads_;
  using Base::ldk_;
  using Base::ldv_;
  using Base::p_;
  using Base::state_;
  using Base::W;
  static constexpr int kChunk = kTileLanes<A>;
  static constexpr int kStretch = static_cast<int>(LinearGradParams::kCheckpoint);

 public:
  using Params = LinearGradParams;

  DeltaBackward(const LinearGradParams& p, Arena& arena) : Base(p, arena) {
    states_ = arena.take<A>(kStretch / chunk_ * p.state_size());
    value_lanes_ = arena.take<A>(int64_t{Dv_} * kChunk);
    grad_lanes_ = arena.take<A>(int64_t{Dv_} * kChunk);
    head_lanes_ = channel_ ? arena.take<A>(int64_t{D_} * kChunk) : nullptr;
    tail_lanes_ = channel_ ? arena.take<A>(int64_t{D_} * kChunk) : nullptr;
    products_ = arena.take<A>(kChunk * kChunk);
    query_grads_ = arena.take<A>(int64_t{D_} * kChunk);
    key_grads_ = arena.take<A>(int64_t{D_} * kChunk);
    rows_ = this->take_rows(arena, D_, ldk_);
    key_rows_ = this->take_rows(arena, D_, ldk_);
  }
  static int64_t items(const LinearGradParams& p) { return p.sequences * p.Hs * p.parts; }

  void run_item(int64_t item) {
    this->start(item);
    this->clear(state_);
    this->clear(grad_);
    if (this->part_ + 1 == p_.parts)
      this->load_state(p_.grad_state, View(), grad_);
    else
      this->copy_columns(this->part_state(p_.part_grads, this->part_), grad_);
    const Range tokens = p_.keys(this->sequence_, this->part_);
    const int64_t stretches =
        tokens.empty() ? 0 : (tokens.end - tokens.begin + kStretch - 1) / kStretch;
    for (int64_t stretch = stretches - 1; stretch >= 0; --stretch) {
      const int64_t i = tokens.begin + stretch * kStretch;
      visit_stretch({i, min64(tokens.end, i + kStretch)});
    }
    clear_padding();
    if (this->part_ == 0) this->store_state(grad_, p_.dinitial, View());
  }

 private:
  A* states_;  // at the beginning of each chunk of a stretch
  A *value_lanes_, *grad_lanes_;
  A *head_lanes_, *tail_lanes_;  // per channel the decays within the chunk
  A* products_;
  A *query_grads_, *key_grads_;  // lanes
  A *rows_, *key_rows_;          // of one head; all that is dkey
  A diagonal_[kChunk];

  LinearState<A> chunk_state(int64_t chunk) const {
    A* s = states_ + chunk * p_.state_size();
    return {s, s + p_.D * ldv_, s + p_.D * ldv_ + ldk_};
  }
  void clear_padding() {
    const Range padded = p_.keys(this->sequence_, this->part_, true);
    for (int64_t g = 0; p_.dquery && g < p_.group(); ++g)
      this->clear_rows(p_.dquery, this->head(g), padded, D_);
    if (p_.dkey) this->clear_rows(p_.dkey, this->hs_, padded, D_);
    if (p_.dvalue) this->clear_rows(p_.dvalue, this->hs_, padded, Dv_);
    if (p_.dbeta) this->clear_rows(p_.dbeta, this->hs_, padded, 1);
    if (p_.ddecay) this->clear_rows(p_.ddecay, this->hs_, padded, channel_ ? D_ : 1);
  }

  void visit_stretch(Range tokens) {
    this->copy_columns(this->checkpoint(tokens.begin), state_);
    const int64_t chunks = (tokens.end - tokens.begin + chunk_ - 1) / chunk_;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      this->copy(state_, chunk_state(chunk));
      if (chunk + 1 == chunks) break;
      pass_tokens(tokens.begin + chunk * chunk_, chunk_);
    }
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t i = tokens.begin + chunk * chunk_;
      this->copy(chunk_state(chunk), state_);
      visit(i, static_cast<int>(min64(chunk_, tokens.end - i)));
    }
  }
  void pass_tokens(int64_t i, int n) {
    this->load_tokens(i, n);
    if (n > 1 && !this->keys_finite(n)) {
      for (int t = 0; t < n; ++t) pass_tokens(i + t, 1);
      return;
    }
    this->pass_keys(n);
  }

  void visit(int64_t i, int n) {
    this->load_tokens(i, n);
    if (n > 1 && !this->all_finite_rows(i, n))
      visit_one_by_one(i, n);
    else if (n <= W)
      visit_chunk<1>(i, n);
    else
      visit_chunk<kMaxVectors>(i, n);
  }
  void visit_one_by_one(int64_t i, int n) {
    const int64_t chunk = (i - p_.keys(this->sequence_, 0).begin) % kStretch / chunk_;
    for (int t = n - 1; t >= 0; --t) {
      this->copy(chunk_state(chunk), state_);
      for (int s = 0; s < t; ++s) pass_tokens(i + s, 1);
      visit(i + t, 1);
    }
  }
  template <int NV>
  void visit_chunk(int64_t i, int n) {
    this->template find_residuals<NV>(i, n);
    store_value_grads(i, n);
    rows_to_lanes(this->values_, ldv_, n, NV * W, Dv_, value_lanes_, kChunk);
    if (channel_) {
      rows_to_lanes(this->head_, ldk_, n, W, D_, head_lanes_, kChunk);
      rows_to_lanes(this->tail_, ldk_, n, W, D_, tail_lanes_, kChunk);
    }
    memset(key_rows_, 0, sizeof(A) * n * ldk_);
    for (int64_t g = 0; g < p_.group(); ++g) {
      if (p_.group() > 1) this->load_head(g, i, n);
      visit_head<NV>(g, i, n, this->query_rows_, this->faded_rows_, grads_);
    }
    visit_head<NV>(p_.group(), i, n, this->keys_, this->reading_keys_, this->reads_);
    lanes_to_rows(key_grads_, kChunk, n, D_, rows_, ldk_);
    if (p_.ddecay) {
      this->add_decay_terms(i, n, this->keys_, rows_, A(-1), false);
      this->store_decay_grads({i, i + n}, state_);
    }
    add(rows_, n);
    if (p_.dkey) this->store_rows(key_rows_, ldk_, n, D_, p_.dkey, this->b_, this->hs_, i);
  }
  void add(const A* rows, int n) {
    for (int at = 0; at < n * ldk_; at += W)
      store(key_rows_ + at, load(key_rows_ + at) + load(rows + at));
  }

  void store_value_grads(int64_t i, int n) {
    const A* errors = this->error_rows(i);
    for (int t = 0; t < n; ++t) {
      A* r = this->residuals_ + t * ldv_;
      if (p_.dbeta)
        store_scalar(p_.dbeta.at(this->b_, this->hs_, i + t), p_.dbeta.dtype,
                     static_cast<double>(dot_rows(r, errors + t * ldv_, ldv_)));
      for (int c = 0; c < ldv_; c += W) store(r + c, load(r + c) * set1(this->beta_[t]));
    }
    if (p_.dvalue)
      this->store_rows(this->residuals_, ldv_, n, Dv_, p_.dvalue, this->b_, this->hs_, i);
  }

  // What one head of queries, the last of which are the keys, means for itself, the keys that wrote
  // the state, and R.
  template <int NV>
  void visit_head(int64_t g, int64_t i, int n, const A* queries, const A* faded, const A* grads) {
    const bool reading = g == p_.group();
    multiply<false, NV>(grads, value_lanes_, n, reading);
    for_row_tiles<kRows>(
        0, D_, [&]<int R>(int d) ATTN_INLINE_LAMBDA { key_gradient<R, NV>(g, d, n, queries); });
    if (channel_)
      add_channel_triangle<false>(products_, queries, ldk_, this->a_, ldk_, n, D_, key_grads_);
    if (decays_ && !reading) this->add_rows(diagonal_, queries, n, key_rows_);

    rows_to_lanes(grads, ldv_, n, NV * W, Dv_, grad_lanes_, kChunk);
    multiply<true, NV>(this->values_, grad_lanes_, n, reading);
    for_row_tiles<kRows>(0, D_,
                         [&]<int R>(int d) ATTN_INLINE_LAMBDA { query_gradient<R, NV>(d, n); });
    if (channel_)
      add_channel_triangle<true>(products_, this->keys_, ldk_, this->a_, ldk_, n, D_, query_grads_);
    lanes_to_rows(query_grads_, kChunk, n, D_, rows_, ldk_);
    if (p_.ddecay) this->add_decay_terms(i, n, queries, rows_, A(1), g == 0);
    if (reading)
      add(rows_, n);
    else
      store_query_grads(g, i, n);
    this->update_state(faded, grads, ldv_, nullptr, n, g == 0 ? this->factor() : nullptr, grad_);
  }
  void store_query_grads(int64_t g, int64_t i, int n) {
    if (!p_.dquery) return;
    if (decays_) this->add_rows(diagonal_, this->keys_, n, rows_);
    this->store_rows(rows_, ldk_, n, D_, p_.dquery, this->b_, this->head(g), i);
  }

  // products = rows . lanes, weighed; without the pairs (t, t) where decays or a reading key ask it
  template <bool kKeysAreRows, int NV>
  void multiply(const A* rows, const A* lanes, int n, bool reading) {
    multiply_scores<kKeysAreRows, A, NV>(rows, ldv_, lanes, n, Dv_, nullptr, nullptr, products_);
    if (channel_)
      for (int t = 0; t < n; ++t) diagonal_[t] = products_[t * kChunk + t];
    else
      weigh_scores<kKeysAreRows, A, NV>(products_, n, decays_ ? this->a_ : nullptr,
                                        decays_ || reading ? diagonal_ : nullptr);
  }
  template <int R, int NV>
  ATTN_INLINE void key_gradient(int64_t g, int d, int n, const A* queries) {
    Vec<A> sums[R][NV];
    if (g == 0) {
      multiply_tile<A, R, NV>(grad_.s + d * ldv_, ldv_, 1, value_lanes_, kChunk, Dv_, sums);
      this->fade(this->tail_, tail_lanes_ + d * kChunk, sums);
    } else {
      this->load_sums(key_grads_ + d * kChunk, sums);
    }
    if (!channel_) add_triangle<false, A, R, NV>(queries + d, 1, ldk_, products_, n, sums);
    this->store_sums(sums, key_grads_ + d * kChunk);
  }
  template <int R, int NV>
  ATTN_INLINE void query_gradient(int d, int n) {
    Vec<A> sums[R][NV];
    multiply_tile<A, R, NV>(state_.s + d * ldv_, ldv_, 1, grad_lanes_, kChunk, Dv_, sums);
    this->fade(this->head_, head_lanes_ + d * kChunk, sums);
    if (!channel_) add_triangle<true, A, R, NV>(this->keys_ + d, 1, ldk_, products_, n, sums);
    this->store_sums(sums, query_grads_ + d * kChunk);
  }
};
