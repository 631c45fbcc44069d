// Linear attention backward. With v' = (v, 1), and of each query g' = (grad_out / den, -grad_out .
// out / den) (or (scale grad_out, 0)), w_ts the decay between the two and R the state's gradient:
//   dphi(q)_t = sum_{s<=t} w_ts (g'_t . v'_s) phi(k_s)     from the states, as the forward pass
//   dphi(k)_s = sum_{t>=s} w_ts (g'_t . v'_s) phi(q_t)     from R, which runs from the end
//   dv_s      = sum_{t>=s} w_ts (phi(q_t) . phi(k_s)) g_t
//   R_{t-1}   = exp(g_t) (R_t + phi(q_t) g'_t^T)
// A decay at u weighs the pairs s < u <= t. Over a stretch of tokens that begins at b its gradient
// is <S, R> at b, plus the sum over b <= i < u of phi(k)_i dphi(k)_i - phi(q)_i dphi(q)_i, both
// without the pair (i, i): where decays are strong, nothing large has to cancel. Included by
// kernels.inl.

// What both directions of the backward pass read: g' of a chunk.
template <class A>
class LinearGradPass : protected LinearPass<A> {
  using Base = LinearPass<A>;

 public:
  LinearGradPass(const LinearGradParams& p, Arena& arena) : Base(p, arena), p_(p) {
    grad_ = this->take_state(arena);
    query_rows_ = this->take_rows(arena, D_, ldk_);
    faded_rows_ = decays_ ? this->take_rows(arena, D_, ldk_) : query_rows_;
    grads_ = this->take_rows(arena, Dv_, ldv_);
    decay_sum_ = arena.take<double>(ldk_);
  }

 protected:
  using Base::channel_;
  using Base::chunk_;
  using Base::D_;
  using Base::decays_;
  using Base::Dv_;
  using Base::ldk_;
  using Base::ldv_;
  using Base::state_;
  using Base::W;
  static constexpr int kChunk = kTileLanes<A>;

  const LinearGradParams& p_;             // hides the base's
  LinearState<A> grad_;                   // R
  A *query_rows_, *faded_rows_, *grads_;  // phi(q) [][width], the same faded, g [][columns]
  double* decay_sum_;                     // per channel
  A terms_[kChunk];                       // the last element of g'

  int64_t head(int64_t g) const { return this->hs_ * p_.group() + g; }
  int step() const { return p_.causal ? chunk_ : kChunk; }

  void load_queries(int64_t h, int64_t i, int n) {
    this->load_features(p_.query, this->query_head(h), i, n, query_rows_);
    for (int t = 0; decays_ && t < n; ++t)
      for (int d = 0; d < ldk_; d += W) {
        const int at = t * ldk_ + d;
        const Vec<A> head = channel_ ? load(this->head_ + at) : set1(this->head_[t]);
        store(faded_rows_ + at, load(query_rows_ + at) * head);
      }
  }
  void load_grads(int64_t h, int64_t i, int n) {
    this->load_rows(p_.grad_out, h, i, n, Dv_, grads_, ldv_);
    const bool nothing = p_.sees_nothing(this->sequence_);
    for (int t = 0; t < kChunk; ++t) terms_[t] = 0;
    for (int t = 0; t < n; ++t) {
      A* row = grads_ + t * ldv_;
      A factor = static_cast<A>(p_.scale);
      if (p_.normalize) {
        factor = A(1) / static_cast<A>(load_scalar(p_.denominator.at(this->b_, h, i + t),
                                                   p_.denominator.dtype));
        terms_[t] = -factor * dot_out(row, h, i + t);
      }
      if (nothing) factor = terms_[t] = 0;
      for (int c = 0; c < ldv_; c += W)
        store(row + c, nothing ? Vec<A>{} : load(row + c) * set1(factor));
    }
  }
  A dot_out(const A* row, int64_t h, int64_t i) const {
    const View& out = p_.out;
    Vec<A> sum{};
    for (int c = 0; c < Dv_; c += W)
      sum =
          fma(load(row + c),
              load_elements<A>(out.at(this->b_, h, i, c), out.dtype, out.stride[3], Dv_ - c), sum);
    return sum_lanes<A>(sum);
  }
  // sums * what fades a row's lanes between the state and the token
  template <int R, int NV>
  ATTN_INLINE void fade(const A* numbers, const A* lanes, Vec<A> (&sums)[R][NV]) const {
    if (!decays_) return;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        sums[r][v] *= load((channel_ ? lanes + r * kChunk : numbers) + v * W);
  }
  template <int R, int NV>
  ATTN_INLINE static void load_sums(const A* lanes, Vec<A> (&sums)[R][NV]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[r][v] = load(lanes + r * kChunk + v * W);
  }
  template <int R, int NV>
  ATTN_INLINE static void store_sums(const Vec<A> (&sums)[R][NV], A* lanes) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store(lanes + r * kChunk + v * W, sums[r][v]);
  }
  // rows[t] += factors[t] * others[t]
  void add_rows(const A* factors, const A* others, int n, A* rows) const {
    for (int t = 0; t < n; ++t)
      for (int d = 0; d < ldk_; d += W) {
        const int at = t * ldk_ + d;
        store(rows + at, fma(set1(factors[t]), load(others + at), load(rows + at)));
      }
  }
  A* decay_terms(int64_t i) const {
    const int64_t size = channel_ ? ldk_ : 1;
    return static_cast<A*>(p_.decay_terms) + ((this->b_ * p_.Hs + this->hs_) * p_.Lk + i) * size;
  }
  // decay_terms += sign * x dx, from 0 if fresh
  void add_decay_terms(int64_t i, int n, const A* x, const A* dx, A sign, bool fresh) {
    A* terms = decay_terms(i);
    for (int t = 0; t < n; ++t, x += ldk_, dx += ldk_) {
      if (!channel_) terms[t] = (fresh ? A(0) : terms[t]) + sign * dot_rows(x, dx, ldk_);
      for (int d = 0; channel_ && d < ldk_; d += W) {
        A* at = terms + t * ldk_ + d;
        store(at, fma(load(x + d) * set1(sign), load(dx + d), fresh ? Vec<A>{} : load(at)));
      }
    }
  }
  // Over a stretch of tokens, given the state before it; R is there by now.
  void store_decay_grads(Range tokens, LinearState<A> begin) {
    for (int d = 0; d < ldk_; ++d) decay_sum_[d] = 0;
    for (int d = 0; d < D_; ++d)
      decay_sum_[channel_ ? d : 0] += dot_rows(begin.s + d * ldv_, grad_.s + d * ldv_, ldv_) +
                                      static_cast<double>(begin.z[d]) * grad_.z[d];
    const int columns = channel_ ? D_ : 1, ld = channel_ ? ldk_ : 1;
    const A* terms = decay_terms(tokens.begin);
    for (int64_t i = tokens.begin; i < tokens.end; ++i, terms += ld)
      for (int d = 0; d < columns; ++d) {
        store_scalar(p_.ddecay.at(this->b_, this->hs_, i, d), p_.ddecay.dtype, decay_sum_[d]);
        decay_sum_[d] -= terms[d];
      }
  }
  bool is_checkpoint(int64_t i) const {
    const int64_t begin = p_.keys(this->sequence_, 0).begin;
    return p_.checkpoint_states && (i - begin) % LinearGradParams::kCheckpoint == 0;
  }
  LinearState<A> checkpoint(int64_t i) const {
    const int64_t slot = i / LinearGradParams::kCheckpoint + (p_.cu_seqlens ? this->sequence_ : 0);
    A* s = static_cast<A*>(p_.checkpoint_states) +
           ((this->b_ * p_.Hs + this->hs_) * p_.checkpoints() + slot) * p_.state_size();
    return {s, s + p_.D * ldv_, s + p_.D * ldv_ + ldk_};
  }
  // R before the queries that load_queries and load_grads read; factor null = 1.
  void pass_queries(int n, const A* factor) {
    this->update_state(faded_rows_, grads_, ldv_, terms_, n, factor, grad_);
  }
};

// First pass: what the queries of one part make of R, from its end to its beginning.
template <class A>
class LinearGradStates : LinearGradPass<A> {
  using Base = LinearGradPass<A>;

 public:
  using Params = LinearGradParams;

  using Base::Base;
  static int64_t items(const LinearGradParams& p) {
    return p.needs_scan() ? p.sequences * p.Hs * p.parts : 0;
  }

  void run_item(int64_t item) {
    this->start(item);
    this->clear(this->grad_);
    const Range queries = this->p_.queries(this->sequence_, this->part_);
    const int64_t step = this->step();
    const int64_t chunks = queries.empty() ? 0 : (queries.end - queries.begin + step - 1) / step;
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t i = queries.begin + chunk * step;
      visit(i, static_cast<int>(min64(step, queries.end - i)));
    }
    this->copy(this->grad_, this->part_state(this->p_.part_grads, this->part_));
  }

 private:
  void visit(int64_t i, int n) {
    if (this->decays_) this->load_keys(i, n);
    for (int64_t g = 0; g < this->p_.group(); ++g) {
      this->load_queries(this->head(g), i, n);
      this->load_grads(this->head(g), i, n);
      this->pass_queries(n, g == 0 ? this->factor() : nullptr);
    }
    for (int d = 0; this->decays_ && d < this->ldk_; ++d) this->grad_.decay[d] *= this->total_[d];
  }
};

// Second pass: R at the end of each part, or, where not causal, over all queries in the place of
// part 0.
template <class A>
class LinearGradScan : LinearPass<A> {
  using Base = LinearPass<A>;

 public:
  using Params = LinearGradParams;

  LinearGradScan(const LinearGradParams& p, Arena& arena) : Base(p, arena), p_(p) {}
  static int64_t items(const LinearGradParams& p) {
    return p.needs_scan() ? p.sequences * p.Hs : 0;
  }

  void run_item(int64_t item) {
    const LinearGradParams& p = p_;
    this->start(item * p.parts);
    this->load_state(p.grad_state, p.grad_z, this->state_);
    for (int64_t part = p.parts - 1; part >= 0; --part)
      scan_step(p, this->state_, this->part_state(p.part_grads, part));
    if (!p.causal) this->copy(this->state_, this->part_state(p.part_grads, 0));
  }

 private:
  const LinearGradParams& p_;  // hides the base's
};
