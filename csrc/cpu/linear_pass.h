// What the passes of linear attention share: one work item is a part of one sequence of one state
// head; it runs through chunks of at most three vectors of tokens (one, for decays of each
// channel). Included by kernels.inl.

template <class A>
struct LinearState {
  A* s;      // [D][columns]
  A* z;      // [width]
  A* decay;  // [width], since the beginning of the part
};

// A kernel of a class whose constructor takes its memory from an arena.
template <class Pass>
struct WorkItems {
  using Params = typename Pass::Params;

  static Plan plan(const Params& p) {
    Arena arena(nullptr);
    Pass measure(p, arena);
    return {Pass::items(p), arena.used()};
  }
  static void run(const Params& p, int64_t item, void* scratch) {
    Arena arena(scratch);
    Pass(p, arena).run_item(item);
  }
};

template <class A>
class LinearPass {
 public:
  LinearPass(const LinearParams& p, Arena& arena)
      : p_(p),
        D_(static_cast<int>(p.D)),
        Dv_(static_cast<int>(p.Dv)),
        ldk_(static_cast<int>(p.width)),
        ldv_(static_cast<int>(p.columns)),
        channel_(p.channel_decay()),
        decays_(p.decay_kind != DecayKind::kNone),
        chunk_(channel_ ? W : kChunk),
        last_(ldv_) {
    state_ = take_state(arena);
    keys_ = take_rows(arena, D_, ldk_);
    faded_keys_ = decays_ ? take_rows(arena, D_, ldk_) : keys_;
    value_buffer_ = take_rows(arena, Dv_, ldv_);
    const int64_t numbers = channel_ ? int64_t{chunk_} * ldk_ : kChunk;
    a_ = arena.take<A>(numbers);
    head_ = arena.take<A>(numbers);
    tail_ = arena.take<A>(numbers);
    total_ = arena.take<A>(ldk_);
    key_lanes_ = arena.take<A>(p.D * kChunk);
    moving_ = channel_ ? arena.take<A>(p.D * W) : nullptr;
    if (!p.beta) return;
    beta_ = arena.take<A>(kChunk);
    reading_keys_ = decays_ ? take_rows(arena, D_, ldk_) : keys_;
    errors_ = take_rows(arena, Dv_, ldv_);
    corrected_ = take_rows(arena, Dv_, ldv_);
    overlaps_ = arena.take<A>(kChunk * kChunk);
  }

 protected:
  static constexpr int W = kLanes<A>, kChunk = kTileLanes<A>;

  const LinearParams& p_;
  const int D_, Dv_, ldk_, ldv_;
  const bool channel_, decays_;
  const int chunk_;
  int64_t sequence_ = 0, b_ = 0, hs_ = 0, part_ = 0;
  int first_ = 0,
      last_;  // the columns of values and states at work; others are none of its business
  LinearState<A> state_;
  A *keys_, *faded_keys_, *value_buffer_;  // [chunk][width], the same faded to the chunk's end
  const A* values_ = nullptr;
  int64_t ld_values_ = 0;
  // Decay: of a token, from the chunk's beginning up to it, from it to the chunk's end; a number
  // each, or a row for each channel. Over the whole chunk: a row.
  A *a_, *head_, *tail_, *total_;
  A *key_lanes_, *moving_;
  // Of the delta rule: beta, keys faded from the chunk's beginning, v - S^T k and beta times it,
  // the products of keys.
  A *beta_, *reading_keys_, *errors_, *corrected_, *overlaps_;

  // Rows of a chunk whose columns behind D or Dv are 0, and stay it.
  A* take_rows(Arena& arena, int columns, int ld) const {
    A* rows = arena.take<A>(int64_t{chunk_} * ld);
    if (rows && columns < ld) memset(rows, 0, sizeof(A) * chunk_ * ld);
    return rows;
  }
  LinearState<A> take_state(Arena& arena) const {
    A* s = arena.take<A>(p_.state_size());
    return {s, s + p_.D * ldv_, s + p_.D * ldv_ + ldk_};
  }
  LinearState<A> part_state(void* states, int64_t part) const {
    A* s =
        static_cast<A*>(states) + ((sequence_ * p_.Hs + hs_) * p_.parts + part) * p_.state_size();
    return {s, s + p_.D * ldv_, s + p_.D * ldv_ + ldk_};
  }

  void start(int64_t item) {
    part_ = item % p_.parts;
    hs_ = item / p_.parts % p_.Hs;
    sequence_ = item / p_.parts / p_.Hs;
    b_ = p_.batch_row(sequence_);
  }
  // Columns are independent of each other, and come out the same in whatever blocks they go.
  void take_columns(int64_t block) {
    first_ = static_cast<int>(block * p_.block_columns);
    last_ = static_cast<int>(min64(first_ + p_.block_columns, ldv_));
  }
  int last_value() const { return last_ < Dv_ ? last_ : Dv_; }
  int64_t key_head() const { return hs_ / (p_.Hs / p_.Hk); }
  int64_t value_head() const { return hs_ / (p_.Hs / p_.Hv); }
  int64_t query_head(int64_t h) const { return h / (p_.H / p_.Hq); }

  void clear(LinearState<A> state) const {
    memset(state.s, 0, sizeof(A) * (p_.D * ldv_ + ldk_));
    for (int d = 0; d < ldk_; ++d) state.decay[d] = 1;
  }
  void copy(LinearState<A> from, LinearState<A> to) const {
    memcpy(to.s, from.s, sizeof(A) * p_.state_size());
  }
  void copy_columns(LinearState<A> from, LinearState<A> to) const {
    for (int64_t at = first_; at < first_ + D_ * int64_t{ldv_}; at += ldv_)
      memcpy(to.s + at, from.s + at, sizeof(A) * (last_ - first_));
  }
  // Absent views are 0.
  void load_state(const View& s, const View& z, LinearState<A> state) const {
    clear(state);
    if (s)
      copy_rows<A>(s.at(sequence_, hs_, 0), s.stride[2] * size_of(s.dtype), s.dtype, s.stride[3],
                   D_, Dv_, state.s, ldv_);
    if (z) copy_rows<A>(z.at(sequence_, hs_, 0), 0, z.dtype, z.stride[3], 1, D_, state.z, ldk_);
  }
  void store_state(LinearState<A> state, const View& s, const View& z) const {
    if (s)
      store_rows(state.s + first_, ldv_, D_, last_value() - first_, at_columns(s), sequence_, hs_,
                 0);
    if (z) store_rows(state.z, ldk_, 1, D_, z, sequence_, hs_, 0);
  }

  View at_columns(View view) const {
    view.data = view.at(0, 0, 0, first_);
    return view;
  }
  void load_rows(const View& view, int64_t h, int64_t i, int n, int columns, A* rows,
                 int ld) const {
    copy_rows<A>(view.at(b_, h, i), view.stride[2] * size_of(view.dtype), view.dtype,
                 view.stride[3], n, columns, rows, ld);
  }
  void store_rows(const A* rows, int ld, int n, int columns, const View& view, int64_t b, int64_t h,
                  int64_t i) const {
    for (int r = 0; r < n; ++r)
      for (int c = 0; c < columns; c += W)
        store_elements<A>(view.at(b, h, i + r, c), view.dtype, view.stride[3], columns - c,
                          load(rows + r * ld + c));
  }
  void clear_rows(const View& view, int64_t h, Range rows, int columns) const {
    for (int64_t i = rows.begin; i < rows.end; ++i)
      for (int c = 0; c < columns; c += W)
        store_elements<A>(view.at(b_, h, i, c), view.dtype, view.stride[3], columns - c, Vec<A>{});
  }
  void load_features(const View& view, int64_t h, int64_t i, int n, A* rows) const {
    load_rows(view, h, i, n, D_, rows, ldk_);
    map_features(p_.map, rows, n, D_, ldk_);
  }

  // Keys, values and decays of tokens i .. i + n - 1.
  void load_keys(int64_t i, int n) {
    load_features(p_.key, key_head(), i, n, keys_);
    const View& v = p_.value;
    if (has_natural_rows<A>(v, Dv_) && Dv_ == ldv_) {
      values_ = reinterpret_cast<const A*>(v.at(b_, value_head(), i));
      ld_values_ = v.stride[2];
    } else {
      load_rows(v, value_head(), i, n, Dv_, value_buffer_, ldv_);
      values_ = value_buffer_, ld_values_ = ldv_;
    }
    if (channel_)
      load_channel_decays(i, n);
    else if (decays_)
      load_token_decays(i, n);
    if (!p_.beta) return;
    for (int t = 0; t < n; ++t)
      beta_[t] = static_cast<A>(load_scalar(p_.beta.at(b_, hs_, i + t), p_.beta.dtype));
    for (int t = 0; decays_ && t < n; ++t)
      for (int d = 0; d < ldk_; d += W) {
        const int at = t * ldk_ + d;
        const Vec<A> head = channel_ ? load(head_ + at) : set1(head_[t]);
        store(reading_keys_ + at, load(keys_ + at) * head);
      }
  }
  void load_token_decays(int64_t i, int n) {
    const View& g = p_.decay;
    double sum[kChunk + 1] = {0};  // of log2 decays; their differences keep all digits of float
    for (int t = 0; t < n; ++t) {
      const double x = load_scalar(g.at(b_, hs_, i + t), g.dtype) * kLog2e;
      sum[t + 1] = sum[t] + (x < -1e6 ? -1e6 : x);
    }
    for (int t = 0; t < kChunk; ++t) {
      const int u = t < n ? t : n - 1;
      a_[t] = static_cast<A>(sum[u + 1] - sum[u]);
      head_[t] = static_cast<A>(sum[u + 1]);
      tail_[t] = static_cast<A>(sum[n] - sum[u + 1]);
    }
    for (int t = 0; t < kChunk; t += W) {
      store(a_ + t, exp2(load(a_ + t)));
      store(head_ + t, exp2(load(head_ + t)));
      store(tail_ + t, exp2(load(tail_ + t)));
    }
    for (int d = 0; d < ldk_; ++d) total_[d] = head_[n - 1];
    for (int t = 0; t < n; ++t)
      for (int d = 0; d < ldk_; d += W)
        store(faded_keys_ + t * ldk_ + d, load(keys_ + t * ldk_ + d) * set1(tail_[t]));
  }
  void load_channel_decays(int64_t i, int n) {
    load_rows(p_.decay, hs_, i, n, D_, a_, ldk_);
    const Vec<A> one = set1(A(1));
    for (int d = 0; d < ldk_; d += W) {
      Vec<A> product = one, sum{};
      for (int t = 0; t < n; ++t) {
        const Vec<A> g = load(a_ + t * ldk_ + d), a = exp<A>(g);
        sum += g;
        product *= a;
        store(a_ + t * ldk_ + d, a);
        store(head_ + t * ldk_ + d, product);
      }
      store(total_ + d, exp<A>(sum));
      product = one;
      for (int t = n - 1; t >= 0; --t) {
        store(tail_ + t * ldk_ + d, product);
        store(faded_keys_ + t * ldk_ + d, load(keys_ + t * ldk_ + d) * product);
        product *= load(a_ + t * ldk_ + d);
      }
    }
  }
  bool decays_finite(int n) const {
    return channel_ ? rows_finite(a_, ldk_, n, D_) : !decays_ || rows_finite(a_, 0, 1, n);
  }
  // 0 * NaN is NaN: where keys or values are not finite, no chunk may hold pairs that aren't
  // allowed, so tokens go one by one.
  bool keys_finite(int n) const {
    return rows_finite(keys_, ldk_, n, D_) && rows_finite(values_, ld_values_, n, Dv_) &&
           decays_finite(n);
  }
  // The delta rule: values <- beta (v - S^T k), S the state right before the token. With N_ts the
  // faded product of two keys this is the triangular system
  //   e_t = v_t - S_0^T k_t - sum_{s<t} N_ts beta_s e_s.
  void correct_values(int n) {
    overlap_keys(n);
    memset(errors_, 0, sizeof(A) * n * ldv_);
    accumulate_rows<A>(reading_keys_, ldk_, state_.s + first_, ldv_, n, D_, last_ - first_,
                       errors_ + first_, ldv_);
    for (int t = 0; t < n; ++t)
      for (int c = first_; c < last_; c += W)
        store(errors_ + t * ldv_ + c,
              load(values_ + t * ld_values_ + c) - load(errors_ + t * ldv_ + c));
    for_row_tiles<2>(first_ / W, last_ / W, [&]<int NV>(int vector) ATTN_INLINE_LAMBDA {
      for_row_tiles<kRows>(0, n, [&]<int R>(int t) ATTN_INLINE_LAMBDA {
        this->template substitute<R, NV>(t, vector * W);
      });
    });
    values_ = corrected_, ld_values_ = ldv_;
  }
  // overlaps[t][s] = N_ts
  void overlap_keys(int n) {
    rows_to_lanes(keys_, ldk_, n, n <= W ? W : kChunk, D_, key_lanes_, kChunk);
    if (channel_)
      multiply_channel_scores<false>(keys_, ldk_, key_lanes_, a_, ldk_, n, D_, moving_, overlaps_);
    else if (n <= W)
      overlap_vectors<1>(n);
    else
      overlap_vectors<kMaxVectors>(n);
  }
  template <int NV>
  void overlap_vectors(int n) {
    multiply_scores<false, A, NV>(keys_, ldk_, key_lanes_, n, D_, nullptr, nullptr, overlaps_);
    weigh_scores<false, A, NV>(overlaps_, n, decays_ ? a_ : nullptr, nullptr);
  }
  template <int R, int NV>
  ATTN_INLINE void substitute(int t, int c) {
    Vec<A> sums[R][NV];
    multiply_tile<A, R, NV>(overlaps_ + t * kChunk, kChunk, 1, corrected_ + c, ldv_, t, sums);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const int at = (t + r) * ldv_ + c + v * W;
        Vec<A> e = load(errors_ + at) - sums[r][v];
#pragma GCC unroll 16
        for (int s = 0; s < r; ++s)
          e = fma(set1(-overlaps_[(t + r) * kChunk + t + s]), sums[s][v], e);
        store(errors_ + at, e);
        sums[r][v] = e * set1(beta_[t + r]);
        store(corrected_ + at, sums[r][v]);
      }
  }

  const A* factor() const { return decays_ ? total_ : nullptr; }

  // The state after the tokens that load_keys read.
  void pass_keys(int n) {
    update_state(faded_keys_, values_, ld_values_, nullptr, n, factor(), state_);
  }
  // s <- factor[d] s + sum_{i < n} keys[i][d] values[i][c], and z the same with 1 as the value (or
  // terms[i]); factor null = 1.
  void update_state(const A* keys, const A* values, int64_t ld_values, const A* terms, int n,
                    const A* factor, LinearState<A> state) const {
    constexpr int kWide = ATTN_VECTOR_BYTES == 64 ? 4 : 2;
    for_row_tiles<kWide>(first_ / W, last_ / W, [&]<int NV>(int vector) ATTN_INLINE_LAMBDA {
      const int c = vector * W;
      for_row_tiles<6>(0, D_, [&]<int R>(int d) ATTN_INLINE_LAMBDA {
        Vec<A> sums[R][NV];
        multiply_tile<A, R, NV>(keys + d, 1, ldk_, values + c, ld_values, n, sums);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) {
            A* at = state.s + (d + r) * ldv_ + c + v * W;
            store(at,
                  factor ? fma(load(at), set1(factor[d + r]), sums[r][v]) : load(at) + sums[r][v]);
          }
      });
    });
    if (p_.normalize) update_normalizer(keys, terms, n, factor, state.z);
  }
  void update_normalizer(const A* keys, const A* terms, int n, const A* factor, A* z) const {
    for (int d = 0; d < ldk_; d += W) {
      Vec<A> sum{};
      for (int i = 0; i < n; ++i) {
        const Vec<A> k = load(keys + i * ldk_ + d);
        sum = terms ? fma(k, set1(terms[i]), sum) : sum + k;
      }
      store(z + d, factor ? fma(load(z + d), load(factor + d), sum) : load(z + d) + sum);
    }
  }
};
