// One token of linear attention or the delta rule, in place on the state of one (batch row, state
// head), which memory gives and takes once. Included by kernels.inl.

template <class A>
class LinearStep : LinearPass<A> {
  using Base = LinearPass<A>;
  using Base::D_;
  using Base::decays_;
  using Base::Dv_;
  using Base::keys_;
  using Base::ldk_;
  using Base::ldv_;
  using Base::p_;
  using Base::total_;
  using Base::values_;
  using Base::W;

 public:
  using Params = LinearParams;

  static int64_t items(const LinearParams& p) { return p.sequences * p.Hs; }

  LinearStep(const LinearParams& p, Arena& arena) : Base(p, arena) {
    query_ = this->take_rows(arena, D_, ldk_);
    out_ = arena.take<A>(ldv_);
  }

  void run_item(int64_t item) {
    this->start(item);
    load_token();
    if (p_.beta) correct_value();
    A* z = p_.normalize ? reinterpret_cast<A*>(p_.initial_z.at(this->sequence_, this->hs_, 0))
                        : nullptr;
    for (int d = 0; z && d < D_; ++d) z[d] = (decays_ ? total_[d] * z[d] : z[d]) + keys_[d];
    for (int64_t g = 0; g < p_.group(); ++g) visit_head(g, z);
  }

 private:
  static constexpr Dtype kType = kComputeDtype<A>;
  static constexpr int64_t kAhead = 4096;  // bytes of the state, the next head's after this one's
  A *query_, *out_;

  void load_token() {
    this->load_features(p_.key, this->key_head(), 0, 1, keys_);
    this->load_rows(p_.value, this->value_head(), 0, 1, Dv_, this->value_buffer_, ldv_);
    values_ = this->value_buffer_;
    if (!decays_) return;
    const View& g = p_.decay;
    for (int d = 0; d < ldk_; d += W) {
      const Vec<A> x =
          g.stride[3] == 0
              ? set1(static_cast<A>(load_scalar(g.at(this->b_, this->hs_, 0), g.dtype)))
              : load_elements<A>(g.at(this->b_, this->hs_, 0, d), g.dtype, g.stride[3], D_ - d);
      store(total_ + d, exp<A>(x));
      store(this->faded_keys_ + d, load(keys_ + d) * load(total_ + d));
    }
  }

  // tile.operator()<NV>(c, count): columns c .. in NV vectors, the last of which holds `count`
  template <class Tile>
  ATTN_INLINE void for_columns(const Tile& tile) const {
    constexpr int kWide = ATTN_VECTOR_BYTES == 64 ? 8 : 4;
    int c = 0;
    for (; c + kWide * W <= Dv_; c += kWide * W) tile.template operator()<kWide>(c, W);
    for (; c + 4 * W <= Dv_; c += 4 * W) tile.template operator()<4>(c, W);
    for (; c < Dv_; c += W) tile.template operator()<1>(c, Dv_ - c);
  }
  A* state_row(int d, int c) const {
    return reinterpret_cast<A*>(p_.initial.at(this->sequence_, this->hs_, d, c));
  }
  static ATTN_INLINE Vec<A> load_part(const A* p, int count) {
    return load_elements<A>(reinterpret_cast<const char*>(p), kType, 1, count);
  }

  // value <- beta (v - (faded S)^T k)
  void correct_value() {
    const View& view = p_.beta;
    const A beta = static_cast<A>(load_scalar(view.at(this->b_, this->hs_, 0), view.dtype));
    for_columns([&]<int NV>(int c, int count) ATTN_INLINE_LAMBDA {
      Vec<A> sum[NV] = {};
      for (int d = 0; d < D_; ++d) {
        const A* row = state_row(d, c);
        const Vec<A> k = set1(this->faded_keys_[d]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          __builtin_prefetch(reinterpret_cast<const char*>(row + v * W) + kAhead, 1);
          sum[v] = fma(k, load_part(row + v * W, count), sum[v]);
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v)
        store(this->corrected_ + c + v * W, (load(values_ + c + v * W) - sum[v]) * set1(beta));
    });
    values_ = this->corrected_;
  }

  // The first head updates the state on its way.
  void visit_head(int64_t g, const A* z) {
    const int64_t h = this->hs_ * p_.group() + g;
    this->load_features(p_.query, this->query_head(h), 0, 1, query_);
    for_columns([&]<int NV>(int c, int count)
                    ATTN_INLINE_LAMBDA { this->template read_columns<NV>(g == 0, c, count); });
    A factor = static_cast<A>(p_.scale);
    if (z) {
      A sum = static_cast<A>(p_.eps);
      for (int d = 0; d < D_; ++d) sum += query_[d] * z[d];
      factor = A(1) / sum;
    }
    const View& out = p_.out;
    for (int c = 0; c < Dv_; c += W)
      store_elements<A>(out.at(this->b_, h, 0, c), out.dtype, out.stride[3], Dv_ - c,
                        load(out_ + c) * set1(factor));
  }

  // out[c] = sum_d q[d] S[d][c]
  template <int NV>
  ATTN_INLINE void read_columns(bool update, int c, int count) {
    Vec<A> sum[NV] = {}, value[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) value[v] = load(values_ + c + v * W);
    for (int d = 0; d < D_; ++d) {
      A* row = state_row(d, c);
      const Vec<A> k = set1(keys_[d]), q = set1(query_[d]);
      const Vec<A> a = set1(decays_ ? total_[d] : A(1));
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        char* at = reinterpret_cast<char*>(row + v * W);
        Vec<A> s = load_part(row + v * W, count);
        if (update) {
          __builtin_prefetch(at + kAhead, 1);
          s = fma(s, a, k * value[v]);
          store_elements<A>(at, kType, 1, count, s);
        }
        sum[v] = fma(q, s, sum[v]);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(out_ + c + v * W, sum[v]);
  }
};
