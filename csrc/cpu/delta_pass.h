// Delta rule backward (Yang et al. 2024), what its passes share and the two that give states. The
// forward pass is linear attention of the corrected values u_t = beta_t e_t (linear_pass.h). With
// dU what linear attention gives as the gradient of u,
//   r_s = dU_s - sum_{t>s} N_ts beta_t r_t      (the transposed triangular system)
//   dv = beta r,  dbeta_t = r_t . e_t
// and -beta_t r_t is the gradient of what key t reads from the state before it: keys are one more
// head of queries, which don't see their own token. Columns of e, r and both states don't depend on
// each other. Included by kernels.inl.

template <class A>
class DeltaGradPass : protected LinearGradPass<A> {
  using Base = LinearGradPass<A>;

 protected:
  using Base::channel_;
  using Base::chunk_;
  using Base::D_;
  using Base::decays_;
  using Base::first_;
  using Base::grad_;
  using Base::grads_;
  using Base::last_;
  using Base::ldk_;
  using Base::ldv_;
  using Base::p_;
  using Base::W;
  static constexpr int kChunk = kTileLanes<A>;

  A *faded_key_lanes_, *scores_, *value_grads_;  // value_grads: lanes
  A *residuals_, *reads_;                        // r, -beta r

  DeltaGradPass(const LinearGradParams& p, Arena& arena) : Base(p, arena) {
    faded_key_lanes_ = channel_ ? arena.take<A>(int64_t{D_} * kChunk) : this->key_lanes_;
    scores_ = arena.take<A>(kChunk * kChunk);
    value_grads_ = arena.take<A>(int64_t{this->Dv_} * kChunk);
    residuals_ = this->take_rows(arena, this->Dv_, ldv_);
    reads_ = this->take_rows(arena, this->Dv_, ldv_);
  }

  A* error_rows(int64_t i) const {
    return static_cast<A*>(p_.errors) + ((this->b_ * p_.Hs + this->hs_) * p_.Lk + i) * ldv_;
  }
  // Keys, decays and the corrected values, of which DeltaStates found the errors.
  void load_tokens(int64_t i, int n) {
    this->load_keys(i, n);
    const A* errors = error_rows(i);
    for (int t = 0; t < n; ++t)
      for (int c = 0; c < ldv_; c += W)
        store(this->corrected_ + t * ldv_ + c, load(errors + t * ldv_ + c) * set1(this->beta_[t]));
    this->values_ = this->corrected_, this->ld_values_ = ldv_;
  }
  void load_head(int64_t g, int64_t i, int n) {
    this->load_queries(this->head(g), i, n);
    this->load_grads(this->head(g), i, n);
  }
  bool all_finite_rows(int64_t i, int n) {
    bool finite = this->keys_finite(n);
    for (int64_t g = 0; finite && g < p_.group(); ++g) {
      load_head(g, i, n);
      finite =
          rows_finite(this->query_rows_, ldk_, n, D_) && rows_finite(grads_, ldv_, n, this->Dv_);
    }
    return finite;
  }

  // r and -beta r of a chunk, from R at its end.
  template <int NV>
  void find_residuals(int64_t i, int n) {
    this->overlap_keys(n);
    if (channel_) rows_to_lanes(this->faded_keys_, ldk_, n, W, D_, faded_key_lanes_, kChunk);
    for (int64_t g = 0; g < p_.group(); ++g) {
      load_head(g, i, n);
      add_value_gradients<NV>(g, n);
    }
    lanes_to_rows(value_grads_ + first_ * kChunk, kChunk, n, this->last_value() - first_,
                  residuals_ + first_, ldv_);
    for_row_tiles<2>(first_ / W, last_ / W, [&]<int V>(int vector) ATTN_INLINE_LAMBDA {
      int s = n;
      for (; s % kRows != 0; --s) this->template substitute_back<1, V>(s - 1, n, vector * W);
      for (; s > 0; s -= kRows) this->template substitute_back<kRows, V>(s - kRows, n, vector * W);
    });
  }

 private:
  // dU of linear attention
  template <int NV>
  void add_value_gradients(int64_t g, int n) {
    const A* a = decays_ ? this->a_ : nullptr;
    if (channel_) {
      multiply_channel_scores<false>(this->query_rows_, ldk_, this->key_lanes_, a, ldk_, n, D_,
                                     this->moving_, scores_);
    } else {
      multiply_scores<false, A, NV>(this->query_rows_, ldk_, this->key_lanes_, n, D_, nullptr,
                                    nullptr, scores_);
      weigh_scores<false, A, NV>(scores_, n, a, nullptr);
    }
    for_row_tiles<kRows>(first_, this->last_value(), [&]<int R>(int c) ATTN_INLINE_LAMBDA {
      this->template value_gradient<R, NV>(g, c, n);
    });
  }
  template <int R, int NV>
  ATTN_INLINE void value_gradient(int64_t g, int c, int n) {
    Vec<A> sums[R][NV];
    if (g == 0) {
      multiply_tile<A, R, NV>(grad_.s + c, 1, ldv_, faded_key_lanes_, kChunk, D_, sums);
      if (!channel_) this->fade(this->tail_, nullptr, sums);
    } else {
      this->load_sums(value_grads_ + c * kChunk, sums);
    }
    add_triangle<false, A, R, NV>(grads_ + c, 1, ldv_, scores_, n, sums);
    this->store_sums(sums, value_grads_ + c * kChunk);
  }

  template <int R, int NV>
  ATTN_INLINE void substitute_back(int s, int n, int c) {
    const A* overlaps = this->overlaps_;
    Vec<A> sums[R][NV];
    multiply_tile<A, R, NV>(overlaps + (s + R) * kChunk + s, 1, kChunk, reads_ + (s + R) * ldv_ + c,
                            ldv_, n - s - R, sums);
#pragma GCC unroll 16
    for (int r = R - 1; r >= 0; --r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const int at = (s + r) * ldv_ + c + v * W;
        Vec<A> x = load(residuals_ + at) + sums[r][v];
#pragma GCC unroll 16
        for (int t = r + 1; t < R; ++t)
          x = fma(set1(overlaps[(s + t) * kChunk + s + r]), sums[t][v], x);
        store(residuals_ + at, x);
        sums[r][v] = x * set1(-this->beta_[s + r]);
        store(reads_ + at, sums[r][v]);
      }
  }
};

// First pass, to the end: e, and the states every kCheckpoint tokens, of one block of columns.
template <class A>
class DeltaStates : LinearGradPass<A> {
  using Base = LinearGradPass<A>;

 public:
  using Params = LinearGradParams;
  using Base::Base;
  static int64_t items(const LinearGradParams& p) { return p.sequences * p.Hs * p.column_blocks(); }

  void run_item(int64_t item) {
    const LinearGradParams& p = this->p_;
    this->start(item / p.column_blocks() * p.parts);
    this->take_columns(item % p.column_blocks());
    this->load_state(p.initial, View(), this->state_);
    for (int64_t part = 0; part < p.parts; ++part) {
      const Range tokens = p.keys(this->sequence_, part);
      for (int64_t i = tokens.begin; i < tokens.end; i += this->chunk_)
        visit(i, static_cast<int>(min64(this->chunk_, tokens.end - i)));
    }
  }

 private:
  void visit(int64_t i, int n) {
    const LinearGradParams& p = this->p_;
    if (this->is_checkpoint(i)) this->copy_columns(this->state_, this->checkpoint(i));
    this->load_keys(i, n);
    if (n > 1 && !this->keys_finite(n)) {
      for (int t = 0; t < n; ++t) visit(i + t, 1);
      return;
    }
    this->correct_values(n);
    A* errors = static_cast<A*>(p.errors) +
                ((this->b_ * p.Hs + this->hs_) * p.Lk + i) * this->ldv_ + this->first_;
    for (int t = 0; t < n; ++t)
      memcpy(errors + t * this->ldv_, this->errors_ + t * this->ldv_ + this->first_,
             sizeof(A) * (this->last_ - this->first_));
    this->pass_keys(n);
  }
};

// Second pass, where there are parts, back from the end: R at the end of each but the last, of one
// block of columns.
template <class A>
class DeltaGradStates : DeltaGradPass<A> {
  using Base = DeltaGradPass<A>;
  using Base::chunk_;
  using Base::grad_;
  using Base::grads_;
  using Base::ldv_;
  using Base::p_;

 public:
  using Params = LinearGradParams;

  DeltaGradStates(const LinearGradParams& p, Arena& arena) : Base(p, arena) {}
  static int64_t items(const LinearGradParams& p) {
    return p.parts > 1 ? p.sequences * p.Hs * p.column_blocks() : 0;
  }

  void run_item(int64_t item) {
    this->start(item / p_.column_blocks() * p_.parts);
    this->take_columns(item % p_.column_blocks());
    this->load_state(p_.grad_state, View(), grad_);
    for (int64_t part = p_.parts - 1; part > 0; --part) {
      const Range tokens = p_.keys(this->sequence_, part);
      for (int64_t end = tokens.end; end > tokens.begin;) {
        const int64_t i = tokens.begin + (end - 1 - tokens.begin) / chunk_ * chunk_;
        visit(i, static_cast<int>(end - i));
        end = i;
      }
      this->copy_columns(grad_, this->part_state(p_.part_grads, part - 1));
    }
  }

 private:
  void visit(int64_t i, int n) {
    this->load_tokens(i, n);
    if (n > 1 && !this->all_finite_rows(i, n)) {
      for (int t = n - 1; t >= 0; --t) visit(i + t, 1);
      return;
    }
    if (n <= kLanes<A>)
      this->template find_residuals<1>(i, n);
    else
      this->template find_residuals<kMaxVectors>(i, n);
    for (int64_t g = 0; g < p_.group(); ++g) {
      if (p_.group() > 1) this->load_head(g, i, n);
      this->update_state(this->faded_rows_, grads_, ldv_, nullptr, n,
                         g == 0 ? this->factor() : nullptr, grad_);
    }
    this->update_state(this->reading_keys_, this->reads_, ldv_, nullptr, n, nullptr, grad_);
  }
};
