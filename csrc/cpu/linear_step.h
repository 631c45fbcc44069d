// One token of linear attention, in place on the state of one (batch row, state head), which is
// read and written once. Included by kernels.inl.

template <class A>
class LinearStep : LinearPass<A> {
  using Base = LinearPass<A>;
  using Base::D_;
  using Base::Dv_;
  using Base::ldk_;
  using Base::ldv_;
  using Base::p_;
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
    this->load_keys(0, 1);
    if (p_.beta) correct_value();
    A* z = p_.normalize ? reinterpret_cast<A*>(p_.initial_z.at(this->sequence_, this->hs_, 0))
                        : nullptr;
    for (int d = 0; z && d < D_; ++d)
      z[d] = (this->decays_ ? this->total_[d] * z[d] : z[d]) + this->keys_[d];
    for (int64_t g = 0; g < p_.group(); ++g) visit_head(g, z);
  }

 private:
  static constexpr int64_t kAhead = 4096;  // bytes of the state, the next head's after this one's
  A *query_, *out_;

  // value <- beta (v - (faded S)^T k)
  void correct_value() {
    A* error = this->errors_;
    memset(error, 0, sizeof(A) * ldv_);
    for (int d = 0; d < D_; ++d) {
      const Vec<A> k = set1(this->decays_ ? this->total_[d] * this->keys_[d] : this->keys_[d]);
      for (int c = 0; c < Dv_; c += W) {
        const char* s = p_.initial.at(this->sequence_, this->hs_, d, c);
        __builtin_prefetch(s + kAhead, 1);
        store(error + c,
              fma(k, load_elements<A>(s, kComputeDtype<A>, 1, Dv_ - c), load(error + c)));
      }
    }
    for (int c = 0; c < ldv_; c += W)
      store(this->corrected_ + c,
            (load(this->values_ + c) - load(error + c)) * set1(this->beta_[0]));
    this->values_ = this->corrected_;
  }

  // The first head updates the state on its way.
  void visit_head(int64_t g, const A* z) {
    const int64_t h = this->hs_ * p_.group() + g;
    this->load_features(p_.query, this->query_head(h), 0, 1, query_);
    constexpr int kWide = ATTN_VECTOR_BYTES == 64 ? 8 : 4;
    int c = 0;
    for (; c + kWide * W <= Dv_; c += kWide * W) read_columns<kWide>(g == 0, c, W);
    for (; c + 4 * W <= Dv_; c += 4 * W) read_columns<4>(g == 0, c, W);
    for (; c < Dv_; c += W) read_columns<1>(g == 0, c, Dv_ - c);
    A factor = static_cast<A>(p_.scale);
    if (z) {
      A sum = static_cast<A>(p_.eps);
      for (int d = 0; d < D_; ++d) sum += query_[d] * z[d];
      factor = A(1) / sum;
    }
    const View& out = p_.out;
    for (c = 0; c < Dv_; c += W)
      store_elements<A>(out.at(this->b_, h, 0, c), out.dtype, out.stride[3], Dv_ - c,
                        load(out_ + c) * set1(factor));
  }

  // out[c] = sum_d q[d] S[d][c] for NV vectors of columns, `count` elements of the last
  template <int NV>
  void read_columns(bool update, int c, int count) {
    constexpr Dtype kType = kComputeDtype<A>;
    Vec<A> sum[NV] = {};
    for (int d = 0; d < D_; ++d) {
      A* row = reinterpret_cast<A*>(p_.initial.at(this->sequence_, this->hs_, d, c));
      const Vec<A> k = set1(this->keys_[d]), q = set1(query_[d]);
      const Vec<A> a = set1(this->decays_ ? this->total_[d] : A(1));
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        char* at = reinterpret_cast<char*>(row + v * W);
        if (update) __builtin_prefetch(at + kAhead, 1);
        Vec<A> s = load_elements<A>(at, kType, 1, count);
        if (update) {
          s = fma(s, a,
                  k * load_elements<A>(reinterpret_cast<const char*>(this->values_ + c + v * W),
                                       kType, 1, count));
          store_elements<A>(at, kType, 1, count, s);
        }
        sum[v] = fma(q, s, sum[v]);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(out_ + c + v * W, sum[v]);
  }
};
