// Before blocks are selected: the mean of each block's keys, or the compressed keys as they are,
// turned so that keys are lanes. Included by kernels.inl.

template <class A>
class SelectKeys {
 public:
  using Params = SelectParams;
  static constexpr int W = kLanes<A>;

  static Plan plan(const SelectParams& p) {
    Arena arena(nullptr);
    SelectKeys measure(p, arena);
    return {p.B * p.Hkv * (p.columns / W), arena.used()};
  }
  static void run(const SelectParams& p, int64_t item, void* scratch) {
    Arena arena(scratch);
    const int64_t vectors = p.columns / W, list = item / vectors;
    SelectKeys(p, arena).run_vector(list / p.Hkv, list % p.Hkv, item % vectors * W);
  }

 private:
  const SelectParams& p_;
  const int ld_;
  A *row_, *means_;  // [ld], [W][ld]

  SelectKeys(const SelectParams& p, Arena& arena)
      : p_(p), ld_(static_cast<int>((p.D + W - 1) / W * W)) {
    row_ = arena.take<A>(ld_);
    means_ = arena.take<A>(W * ld_);
  }

  void run_vector(int64_t b, int64_t h, int64_t first) {
    const int64_t list = b * p_.Hkv + h, per_column = p_.compression ? 1 : p_.block;
    uint8_t* keep = p_.scored_keep + list * p_.columns + first;
    for (int l = 0; l < W; ++l) {
      const int64_t begin = min64((first + l) * per_column, p_.keys);
      keep[l] = average(b, h, {begin, min64(begin + per_column, p_.keys)}, means_ + l * ld_);
    }
    A* out = static_cast<A*>(p_.scored_keys) + list * p_.D * p_.columns + first;
    for (int c = 0; c < ld_; c += W) {
      Vec<A> x[W];
      for (int l = 0; l < W; ++l) x[l] = load(means_ + l * ld_ + c);
      transpose<A>(x);
      for (int d = c; d < c + W && d < p_.D; ++d) store(out + d * p_.columns, x[d - c]);
    }
  }

  // The mean of those keys that count; whether there are any.
  bool average(int64_t b, int64_t h, Range keys, A* mean) {
    memset(mean, 0, sizeof(A) * ld_);
    memset(row_, 0, sizeof(A) * ld_);
    int64_t count = 0;
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      if (p_.keep && !p_.keep[b * p_.keys + j]) continue;
      ++count;
      copy_rows<A>(p_.key.at(b, h, j), 0, p_.key.dtype, p_.key.stride[3], 1, static_cast<int>(p_.D),
                   row_, ld_);
      for (int c = 0; c < ld_; c += W) store(mean + c, load(mean + c) + load(row_ + c));
    }
    const Vec<A> factor = set1(A(1) / static_cast<A>(max64(count, 1)));
    for (int c = 0; c < ld_; c += W) store(mean + c, load(mean + c) * factor);
    return count > 0;
  }
};
