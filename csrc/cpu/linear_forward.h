// Linear attention forward (Katharopoulos et al. 2020), in chunks as in Yang et al. 2023:
//   S_t = exp(g_t) S_{t-1} + phi(k_t) v_t^T,  out_t = phi(q_t)^T S_t / (phi(q_t)^T z_t + eps)
// A short causal sequence needs the last pass only. Included by kernels.inl.

// First pass: the state that the tokens of one part make, starting from 0.
template <class A>
class LinearStates : LinearPass<A> {
  using Base = LinearPass<A>;

 public:
  using Params = LinearParams;

  using Base::Base;
  static int64_t items(const LinearParams& p) {
    return p.needs_scan() ? p.sequences * p.Hs * p.parts : 0;
  }

  void run_item(int64_t item) {
    this->start(item);
    this->clear(this->state_);
    const Range keys = this->p_.keys(this->sequence_, this->part_);
    for (int64_t i = keys.begin; i < keys.end; i += this->chunk_) {
      const int n = static_cast<int>(min64(this->chunk_, keys.end - i));
      this->load_keys(i, n);
      this->pass_keys(n);
      for (int d = 0; this->decays_ && d < this->ldk_; ++d)
        this->state_.decay[d] *= this->total_[d];
    }
    this->copy(this->state_, this->part_state(this->p_.part_states, this->part_));
  }
};

// state <- local + decay * state, and local <- what the state was
template <class A>
void scan_step(const LinearParams& p, LinearState<A> state, LinearState<A> local) {
  for (int64_t d = 0; d < p.D; ++d)
    for (int64_t c = 0; c < p.columns; c += kLanes<A>) {
      A *running = state.s + d * p.columns + c, *own = local.s + d * p.columns + c;
      const Vec<A> before = load(running);
      store(running, fma(before, set1(local.decay[d]), load(own)));
      store(own, before);
    }
  for (int64_t d = 0; d < p.width; d += kLanes<A>) {
    const Vec<A> before = load(state.z + d);
    store(state.z + d, fma(before, load(local.decay + d), load(local.z + d)));
    store(local.z + d, before);
  }
}

// Second pass: the state at the beginning of each part, or, where not causal, over all keys in the
// place of part 0.
template <class A>
class LinearScan : LinearPass<A> {
  using Base = LinearPass<A>;

 public:
  using Params = LinearParams;

  using Base::Base;
  static int64_t items(const LinearParams& p) { return p.needs_scan() ? p.sequences * p.Hs : 0; }

  void run_item(int64_t item) {
    this->start(item * this->p_.parts);
    this->load_state(this->p_.initial, this->p_.initial_z, this->state_);
    for (int64_t part = 0; part < this->p_.parts; ++part)
      scan_step(this->p_, this->state_, this->part_state(this->p_.part_states, part));
    if (!this->p_.causal) this->copy(this->state_, this->part_state(this->p_.part_states, 0));
  }
};

// Last pass: the outputs of one part.
template <class A>
class LinearForward : LinearPass<A> {
  using Base = LinearPass<A>;
  using Base::channel_;
  using Base::D_;
  using Base::decays_;
  using Base::Dv_;
  using Base::ldk_;
  using Base::ldv_;
  using Base::p_;
  using Base::state_;
  using Base::W;
  static constexpr int kChunk = kTileLanes<A>;

 public:
  using Params = LinearParams;

  static int64_t items(const LinearParams& p) {
    return p.sequences * p.Hs * p.parts * p.column_blocks();
  }

  LinearForward(const LinearParams& p, Arena& arena) : Base(p, arena) {
    query_rows_ = this->take_rows(arena, D_, ldk_);
    queries_ = arena.take<A>(int64_t{D_} * kChunk);
    faded_queries_ = channel_ ? arena.take<A>(int64_t{D_} * kChunk) : queries_;
    scores_ = p.causal ? arena.take<A>(kChunk * kChunk) : nullptr;
    outputs_ = arena.take<A>(int64_t{Dv_} * kChunk);
  }

  void run_item(int64_t item) {
    this->start(item / p_.column_blocks());
    this->take_columns(item % p_.column_blocks());
    if (p_.needs_scan())
      this->copy(this->part_state(p_.part_states, p_.causal ? this->part_ : 0), state_);
    else
      this->load_state(p_.initial, p_.initial_z, state_);
    const Range queries = p_.queries(this->sequence_, this->part_);
    const int64_t step = p_.causal ? this->chunk_ : kChunk;
    for (int64_t i = queries.begin; i < queries.end; i += step)
      visit(i, static_cast<int>(min64(step, queries.end - i)));
    if (p_.causal) clear_padding();
    if (this->part_ == (p_.causal ? p_.parts - 1 : 0))
      this->store_state(state_, p_.state, p_.state_z);
  }

 private:
  A *query_rows_, *queries_,
      *faded_queries_;  // rows, lanes, lanes faded from the chunk's beginning
  A *scores_, *outputs_;

  void clear_padding() {
    const Range padded = p_.keys(this->sequence_, this->part_, true);
    for (int64_t g = 0; g < p_.group(); ++g) {
      const int64_t h = this->hs_ * p_.group() + g;
      clear_out(h, padded);
      if (p_.denominator) this->clear_rows(p_.denominator, h, padded, 1);
    }
  }
  void clear_out(int64_t h, Range rows) {
    this->clear_rows(this->at_columns(p_.out), h, rows, this->last_value() - this->first_);
  }

  void visit(int64_t i, int n) {
    if (p_.causal) {
      this->load_keys(i, n);
      if (n > 1 && !this->keys_finite(n)) {
        for (int t = 0; t < n; ++t) visit(i + t, 1);
        return;
      }
      if (p_.beta) this->correct_values(n);
    }
    for (int64_t g = 0; g < p_.group(); ++g) {
      const int64_t h = this->hs_ * p_.group() + g;
      if (n <= W)
        visit_head<1>(h, i, n);
      else
        visit_head<kMaxVectors>(h, i, n);
    }
    if (p_.causal) this->pass_keys(n);
  }

  template <int NV>
  void visit_head(int64_t h, int64_t i, int n) {
    load_queries<NV>(h, i, n);
    if (p_.causal) score<NV>(n);
    A factor[kChunk];
    find_factors<NV>(h, i, n, factor);
    if (p_.sees_nothing(this->sequence_)) return clear_out(h, {i, i + n});
    const int first = this->first_, last = this->last_value();
    for_row_tiles<kRows>(first, last,
                         [&]<int R>(int c) ATTN_INLINE_LAMBDA { output<R, NV>(c, n); });
    char* rows[kChunk];
    for (int t = 0; t < n; ++t) rows[t] = p_.out.at(this->b_, h, i + t, first);
    unpack_lanes(outputs_ + first * kChunk, kChunk, factor, n, last - first, rows, p_.out.dtype,
                 p_.out.stride[3]);
  }

  template <int NV>
  void load_queries(int64_t h, int64_t i, int n) {
    // A chunk of a call that isn't causal may be longer than the row buffers of channel decays, but
    // such a call has no decays.
    this->load_features(p_.query, this->query_head(h), i, n, query_rows_);
    rows_to_lanes(query_rows_, ldk_, n, NV * W, D_, queries_, kChunk);
    if (!channel_) return;
    for (int t = 0; t < n * ldk_; t += W)
      store(query_rows_ + t, load(query_rows_ + t) * load(this->head_ + t));
    rows_to_lanes(query_rows_, ldk_, n, NV * W, D_, faded_queries_, kChunk);
  }

  template <int NV>
  void score(int n) {
    if constexpr (NV == 1)
      if (channel_)
        return multiply_channel_scores<true>(this->keys_, ldk_, queries_, this->a_, ldk_, n, D_,
                                             this->moving_, scores_);
    multiply_scores<true, A, NV>(this->keys_, ldk_, queries_, n, D_, nullptr, nullptr, scores_);
    weigh_scores<true, A, NV>(scores_, n, decays_ ? this->a_ : nullptr, nullptr);
  }

  // What the outputs of a lane are multiplied by: the scale, or 1 / denominator.
  template <int NV>
  void find_factors(int64_t h, int64_t i, int n, A* factor) {
    if (!p_.normalize) {
      for (int t = 0; t < kChunk; ++t) factor[t] = static_cast<A>(p_.scale);
      return;
    }
    Vec<A> sum[NV] = {};
    for (int d = 0; d < D_; ++d)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        sum[v] = fma(set1(state_.z[d]), load(faded_queries_ + d * kChunk + v * W), sum[v]);
    for (int v = 0; v < NV; ++v) {
      if (decays_ && !channel_) sum[v] *= load(this->head_ + v * W);
      for (int s = 0; p_.causal && s < n && s < (v + 1) * W; ++s)
        sum[v] += load(scores_ + s * kChunk + v * W);
      sum[v] += set1(static_cast<A>(p_.eps));
      store(factor + v * W, set1(A(1)) / sum[v]);
    }
    for (int t = 0; t < n; ++t)
      store_scalar(p_.denominator.at(this->b_, h, i + t), p_.denominator.dtype,
                   static_cast<double>(sum[t / W][t % W]));
  }

  // outputs[c][t] = sum_d S[d][c] q[d][t] + sum_s v[s][c] scores[s][t]
  template <int R, int NV>
  ATTN_INLINE void output(int c, int n) {
    Vec<A> sums[R][NV];
    multiply_tile<A, R, NV>(state_.s + c, 1, ldv_, faded_queries_, kChunk, D_, sums);
    if (p_.causal) {
      if (decays_ && !channel_)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sums[r][v] *= load(this->head_ + v * W);
      add_triangle<true, A, R, NV>(this->values_ + c, 1, this->ld_values_, scores_, n, sums);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store(outputs_ + (c + r) * kChunk + v * W, sums[r][v]);
  }
};
