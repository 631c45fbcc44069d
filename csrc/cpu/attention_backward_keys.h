// The key side of the backward pass: one block of keys and values, packed with the keys as lanes in
// tiles of kTile, and its gradients. Included by kernels.inl.

constexpr int kKeyVectors = 2;  // of lanes per key tile

template <class E>
class KeySide {
 public:
  using A = Compute<E>;
  static constexpr int kTile = kKeyVectors * kLanes<A>;

  KeySide(const AttentionGradParams& p, Arena& arena)
      : p_(p), D_(static_cast<int>(p.D)), Dv_(static_cast<int>(p.Dv)) {
    kt_ = arena.take<Lane<E>>(kKeyBlock * steps<E>(D_));
    vt_ = arena.take<Lane<E>>(kKeyBlock * steps<E>(Dv_));
    dkt_ = arena.take<A>(kKeyBlock * D_);
    dvt_ = arena.take<A>(kKeyBlock * Dv_);
    // dq needs whole vectors of key columns.
    const bool in_place = kPair<E> == 1 && has_reusable_rows<E>(p.key, D_) && D_ % kLanes<A> == 0;
    if (p.dq && !in_place) copy_ = arena.take<Scalar<E>>(kKeyBlock * p.plan.dq_width);
  }

  // k(t)[d][key] = key row, v(t)[d][key] = value row; lanes behind the last key repeat it and are
  // not read back.
  void read(int64_t b, int64_t hkv, Range keys) {
    const char *k[kKeyBlock], *v[kKeyBlock];
    const int n = static_cast<int>(keys.end - keys.begin);
    for (int j = 0; j < kKeyBlock; ++j) {
      const int64_t key = keys.begin + (j < n ? j : n - 1);
      k[j] = p_.key.at(b, hkv, key);
      v[j] = p_.value.at(b, hkv, key);
    }
    for (int t = 0; t * kTile < n; ++t) {
      pack_operands<E>(k + t * kTile, kTile, p_.key, D_, false, kt_ + t * kTile * steps<E>(D_),
                       kTile);
      pack_operands<E>(v + t * kTile, kTile, p_.value, Dv_, false, vt_ + t * kTile * steps<E>(Dv_),
                       kTile);
    }
    if (p_.dq) read_down(k[0], n);
  }

  void clear_gradients() {
    memset(dkt_, 0, sizeof(A) * kKeyBlock * D_);
    memset(dvt_, 0, sizeof(A) * kKeyBlock * Dv_);
  }
  void write_gradients(int64_t b, int64_t hkv, Range keys) const {
    if (p_.dk) unpack(dkt_, D_, p_.dk, b, hkv, keys);
    if (p_.dv) unpack(dvt_, Dv_, p_.dv, b, hkv, keys);
  }

  const Lane<E>* k(int t) const { return kt_ + t * kTile * steps<E>(D_); }
  const Lane<E>* v(int t) const { return vt_ + t * kTile * steps<E>(Dv_); }
  A* dk(int t) const { return dkt_ + t * kTile * D_; }
  A* dv(int t) const { return dvt_ + t * kTile * Dv_; }
  // Keys of tile t for products along the keys.
  const Lane<E>* k_down(int t) const {
    return reinterpret_cast<const Lane<E>*>(down_.data + t * kTile * down_.ld);
  }
  int64_t ld_down() const { return down_.ld; }
  bool finite() const { return finite_; }

 private:
  const AttentionGradParams& p_;
  const int D_, Dv_;
  Lane<E>*kt_, *vt_;           // [tiles][steps of D or Dv][kTile]
  A *dkt_, *dvt_;              // [tiles][D or Dv][kTile]
  Scalar<E>* copy_ = nullptr;  // [kKeyBlock][dq_width]
  Rows<E> down_;
  bool finite_ = true;

  void read_down(const char* rows, int n) {
    const View& key = p_.key;
    const int64_t row_bytes = key.stride[2] * size_of(key.dtype), width = p_.plan.dq_width;
    if constexpr (kPair<E> > 1) {
      interleave_rows(rows, row_bytes, key.stride[3], n, D_, copy_, width);
    } else if (copy_) {
      memset(copy_, 0, sizeof(Scalar<E>) * n * width);
      copy_operands<E>(rows, row_bytes, key, n, D_, copy_, width);
    }
    if (copy_)
      down_ = {copy_, width};
    else
      down_ = {reinterpret_cast<const Scalar<E>*>(rows), key.stride[2]};
    finite_ = operands_finite<E>(down_.data, down_.ld * kPair<E>, static_cast<int>(steps<E>(n)),
                                 D_ * kPair<E>);
  }

  static void unpack(const A* packed, int columns, const View& out, int64_t b, int64_t hkv,
                     Range keys) {
    A one[kTile];
    for (A& x : one) x = 1;
    for (int64_t j = keys.begin; j < keys.end; j += kTile) {
      char* rows[kTile];
      const int count = static_cast<int>(min64(kTile, keys.end - j));
      for (int l = 0; l < count; ++l) rows[l] = out.at(b, hkv, j + l);
      unpack_lanes<A>(packed + (j - keys.begin) * columns, kTile, one, count, columns, rows,
                      out.dtype, out.stride[3]);
    }
  }
};
