// Attention forward for tiles that few of their queries see: one work item is a block of rows of
// one (b, key head), and for each block of keys the rows that see some of it are gathered. Keys are
// the lanes, s[row][key]; nothing else acts on the products than the scale. Rows are computed each
// by itself, so that results don't depend on those beside it. Included by kernels.inl.

// Lanes of a vector folded into one number by a function of two vectors.
template <class T, int kStep, class Fold, size_t... L>
ATTN_INLINE Vec<T> fold_step(Vec<T> v, const Fold& fold, std::index_sequence<L...>) {
  return fold(v, __builtin_shufflevector(v, v, (int(L) + kStep) % int(sizeof...(L))...));
}
template <class T, int kStep = kLanes<T> / 2, class Fold>
ATTN_INLINE T fold_lanes(Vec<T> v, const Fold& fold) {
  if constexpr (kStep == 0)
    return v[0];
  else
    return fold_lanes<T, kStep / 2>(
        fold_step<T, kStep>(v, fold, std::make_index_sequence<kLanes<T>>{}), fold);
}

template <class A>
class AttentionForwardGathered {
 public:
  using Params = AttentionParams;
  static constexpr int W = kLanes<A>, kVectors = kKeyBlock / W;

  static bool serves(const AttentionParams& p) {
    return p.mask.table.sparse && has_plain_scores(p) && !p.dropout.active();
  }
  static Plan plan(const AttentionParams& p) {
    Arena arena(nullptr);
    AttentionForwardGathered measure(p, arena);
    return {p.B * p.Hkv * measure.items_, arena.used()};
  }
  static void run(const AttentionParams& p, int64_t item, void* scratch) {
    Arena arena(scratch);
    AttentionForwardGathered(p, arena).run_item(item);
  }

 private:
  static constexpr int kTogether = 48;  // rows of one product

  const AttentionParams& p_;
  const A unit_;           // a score is unit * (q . k), the sign of the scale being in q
  const int64_t queries_;  // of an item, for each head of the group: whole tiles of the table
  const int64_t items_;    // of a key head
  const int ldq_, ldo_;
  int64_t b_ = 0, hkv_ = 0;
  Range queries_here_{0, 0};
  A *q_, *o_, *m_, *l_;  // [rows][ldq], [rows][ldo], [rows], [rows]; row g * queries + query
  A *keys_, *values_;    // [D][kKeyBlock], [kKeyBlock][ldo]
  bool values_copied_;
  int64_t* seeing_;                    // [rows], those that see some key of the block
  uint64_t* maps_;                     // [rows], of those
  A *q_seen_, *s_, *o_seen_, *alpha_;  // of kTogether of them

  AttentionForwardGathered(const AttentionParams& p, Arena& arena)
      : p_(p),
        unit_(static_cast<A>(std::abs(p.score.scale))),
        queries_(kTableTile * max64(1, 4 / max64(1, p.group()))),
        items_((p.Lq + queries_ - 1) / queries_),
        ldq_(static_cast<int>((p.D + W - 1) / W * W)),
        ldo_(static_cast<int>((p.Dv + W - 1) / W * W)),
        values_copied_(!has_natural_rows<A>(p.value, p.Dv) || p.Dv % W != 0) {
    const int64_t rows = p.group() * queries_;
    q_ = arena.take<A>(rows * ldq_);
    o_ = arena.take<A>(rows * ldo_);
    m_ = arena.take<A>(rows);
    l_ = arena.take<A>(rows);
    keys_ = arena.take<A>(kKeyBlock * p.D);
    values_ = values_copied_ ? arena.take<A>(kKeyBlock * ldo_) : nullptr;
    seeing_ = arena.take<int64_t>(rows);
    maps_ = arena.take<uint64_t>(rows);
    q_seen_ = arena.take<A>(kTogether * ldq_);
    s_ = arena.take<A>(kTogether * kKeyBlock);
    o_seen_ = arena.take<A>(kTogether * ldo_);
    alpha_ = arena.take<A>(kTogether);
  }

  // Items count down within a head: with a causal mask the last rows are the heaviest and go first.
  void run_item(int64_t item) {
    b_ = item / items_ / p_.Hkv;
    hkv_ = item / items_ % p_.Hkv;
    const int64_t first = (items_ - 1 - item % items_) * queries_;
    queries_here_ = {first, min64(first + queries_, p_.Lq)};
    start_rows();
    const Range heads{hkv_ * p_.group(), (hkv_ + 1) * p_.group()};
    const Range keys = p_.mask.key_range(b_, queries_here_);
    const auto next = [&](int64_t j) {
      const int64_t begin = p_.mask.next_keys(b_, heads, queries_here_, j);
      return Range{begin, min64(begin + kKeyBlock, keys.end)};
    };
    for (Range block = next(keys.begin / kKeyBlock * kKeyBlock); !block.empty();
         block = next(block.begin + kKeyBlock))
      visit_block(block);
    finish_rows();
  }

  void start_rows() {
    const int64_t rows = p_.group() * queries_;
    memset(q_, 0, sizeof(A) * rows * ldq_);
    memset(o_, 0, sizeof(A) * rows * ldo_);
    for (int64_t r = 0; r < rows; ++r) m_[r] = -std::numeric_limits<A>::infinity(), l_[r] = 0;
    const int count = static_cast<int>(queries_here_.end - queries_here_.begin);
    for (int64_t g = 0; g < p_.group(); ++g)
      copy_rows<A>(p_.query.at(b_, hkv_ * p_.group() + g, queries_here_.begin),
                   p_.query.stride[2] * size_of(p_.query.dtype), p_.query.dtype, p_.query.stride[3],
                   count, static_cast<int>(p_.D), q_ + g * queries_ * ldq_, ldq_);
    if (p_.score.scale < 0)
      for (int64_t c = 0; c < rows * ldq_; c += W) store(q_ + c, -load(q_ + c));
  }

  void visit_block(Range keys) {
    const int64_t count = gather(keys);
    if (count == 0) return;
    const int n = static_cast<int>(keys.end - keys.begin);
    read_keys(keys.begin, n);
    const Rows<A> values = read_values(keys.begin, n);
    const bool finite = rows_finite(values.data, values.ld, n, static_cast<int>(p_.Dv));
    for (int64_t first = 0; first < count; first += kTogether)
      run_rows(first, static_cast<int>(min64(kTogether, count - first)), values, n, finite);
  }

  // The rows that see some of the keys, and which.
  int64_t gather(Range keys) {
    const uint64_t every = bits_between(0, keys.end - keys.begin);
    int64_t count = 0;
    for (int64_t g = 0; g < p_.group(); ++g) {
      const int64_t h = hkv_ * p_.group() + g, row0 = g * queries_ - queries_here_.begin;
      RowMaps row_maps(p_.mask, b_, keys.begin);
      for (int64_t i = queries_here_.begin; i < queries_here_.end; i += kTableTile) {
        const Range rows{i, min64(i + kTableTile, queries_here_.end)};
        const TableTile tile = p_.mask.table.find(b_, h, i / kTableTile, keys.begin / kTableTile);
        if (!tile.rows && !tile.queries) continue;
        if (!tile.rows && only_table_decides(rows, keys)) {
          const uint64_t existing = bits_between(0, rows.end - i);
          for (uint64_t seen = tile.queries & existing; seen; seen &= seen - 1) {
            seeing_[count] = row0 + i + __builtin_ctzll(seen);
            maps_[count++] = every;
          }
          continue;
        }
        for (int64_t at = rows.begin; at < rows.end; ++at)
          if (const uint64_t map = row_maps(h, at) & every) {
            seeing_[count] = row0 + at;
            maps_[count++] = map;
          }
      }
    }
    return count;
  }

  bool only_table_decides(Range rows, Range keys) const {
    return !p_.mask.bits && p_.mask.dilation == 1 &&
           p_.mask.row_interval(b_, rows.begin).contains(keys) &&
           p_.mask.row_interval(b_, rows.end - 1).contains(keys);
  }

  // Lanes behind the last key repeat it; no map has them.
  void read_keys(int64_t first, int n) {
    const char* rows[kKeyBlock];
    for (int j = 0; j < kKeyBlock; ++j) rows[j] = p_.key.at(b_, hkv_, first + (j < n ? j : n - 1));
    pack_lanes<A>(rows, kKeyBlock, p_.key.dtype, p_.key.stride[3], static_cast<int>(p_.D), A(1),
                  keys_, kKeyBlock);
  }

  Rows<A> read_values(int64_t first, int n) {
    const View& value = p_.value;
    const char* rows = value.at(b_, hkv_, first);
    if (!values_copied_) return {reinterpret_cast<const A*>(rows), value.stride[2]};
    memset(values_, 0, sizeof(A) * n * ldo_);
    copy_rows<A>(rows, value.stride[2] * size_of(value.dtype), value.dtype, value.stride[3], n,
                 static_cast<int>(p_.Dv), values_, ldo_);
    return {values_, ldo_};
  }

  // Those gathered from `first` on against n keys.
  void run_rows(int64_t first, int count, Rows<A> values, int n, bool finite) {
    for (int r = 0; r < count; ++r) {
      const A* q = q_ + seeing_[first + r] * ldq_;
      for (int c = 0; c < ldq_; c += W) store(q_seen_ + r * ldq_ + c, load(q + c));
    }
    memset(s_, 0, sizeof(A) * count * kKeyBlock);
    accumulate_rows<A>(q_seen_, ldq_, keys_, kKeyBlock, count, static_cast<int>(p_.D), kKeyBlock,
                       s_, kKeyBlock);
    for (int r = 0; r < count; ++r)
      exponentiate(seeing_[first + r], maps_[first + r], s_ + r * kKeyBlock, alpha_[r]);
    memset(o_seen_, 0, sizeof(A) * count * ldo_);
    accumulate_rows<A>(s_, kKeyBlock, values.data, values.ld, count, n, ldo_, o_seen_, ldo_);
    for (int r = 0; r < count; ++r) {
      A *o = o_ + seeing_[first + r] * ldo_, *added = o_seen_ + r * ldo_;
      if (!finite && maps_[first + r] != bits_between(0, n))
        add_seen(maps_[first + r], s_ + r * kKeyBlock, values, added);
      for (int c = 0; c < ldo_; c += W)
        store(o + c, fma(load(o + c), set1(alpha_[r]), load(added + c)));
    }
  }

  // p = exp(s - m), alpha = exp(m_old - m), l <- l * alpha + sum p. While all keys have -inf, 0
  // stands in for m.
  void exponentiate(int64_t row, uint64_t map, A* s, A& alpha) {
    const Vec<A> minus_infinity = set1(-std::numeric_limits<A>::infinity());
    const Vec<A> unit = set1(static_cast<A>(unit_ * kLog2e));
    Vec<A> x[kVectors], top = minus_infinity, sum{};
    for (int v = 0; v < kVectors; ++v) {
      x[v] = load(s + v * W);
      if (~map)
        x[v] = select<A>(lanes_from_bits<A>(static_cast<Word<A>>(map >> (v * W))), x[v],
                         minus_infinity);
      top = max<A>(top, x[v]);
    }
    const A largest = fold_lanes<A>(top, [](Vec<A> a, Vec<A> b) { return max<A>(a, b); });
    const A m = largest > m_[row] ? largest : m_[row];
    const Vec<A> base = set1(m == minus_infinity[0] ? A(0) : m);
    alpha = exp2((set1(m_[row]) - base) * unit)[0];
    for (int v = 0; v < kVectors; ++v) {
      x[v] = exp2((x[v] - base) * unit);
      sum += x[v];
      store(s + v * W, x[v]);
    }
    m_[row] = m;
    l_[row] = l_[row] * alpha + fold_lanes<A>(sum, [](Vec<A> a, Vec<A> b) { return a + b; });
  }

  // sum of p v over the keys that a row sees: 0 * NaN must not reach the others.
  void add_seen(uint64_t map, const A* weights, Rows<A> values, A* o) const {
    memset(o, 0, sizeof(A) * ldo_);
    for (; map; map &= map - 1) {
      const int j = __builtin_ctzll(map);
      for (int c = 0; c < ldo_; c += W)
        store(o + c, fma(set1(weights[j]), load(values.data + j * values.ld + c), load(o + c)));
    }
  }

  // out = o / l, lse = m + log l; a row that saw no key has l = 0. A sink is one more key of that
  // score and value 0.
  void finish_rows() {
    for (int64_t g = 0; g < p_.group(); ++g)
      for (int64_t i = queries_here_.begin; i < queries_here_.end; ++i)
        finish_row(hkv_ * p_.group() + g, i, g * queries_ + i - queries_here_.begin);
  }
  void finish_row(int64_t h, int64_t i, int64_t row) {
    double m = static_cast<double>(m_[row]) * unit_, l = l_[row], kept = 1;
    if (p_.sinks) {
      const double sink = load_scalar(p_.sinks.at(0, h, 0), p_.sinks.dtype);
      const double top = std::fmax(m, sink);
      kept = l == 0 ? 0 : std::exp(m - top);
      l = l * kept + (sink == -INFINITY ? 0 : std::exp(sink - top));
      m = top;
    }
    const Vec<A> factor = set1(static_cast<A>(l == 0 ? 0 : kept / l));
    for (int c = 0; c < p_.Dv; c += W)
      store_elements<A>(p_.out.at(b_, h, i, c), p_.out.dtype, p_.out.stride[3],
                        static_cast<int>(p_.Dv) - c, load(o_ + row * ldo_ + c) * factor);
    store_scalar(p_.lse.at(b_, h, i), p_.lse.dtype,
                 l == 0          ? -INFINITY
                 : m == INFINITY ? m
                                 : m + std::log(l));
  }
};

// Whichever of the two a call is for.
template <class E>
struct AttentionForwardKernel {
  using Params = AttentionParams;
  using Gathered = AttentionForwardGathered<Compute<E>>;

  static Plan plan(const AttentionParams& p) {
    return Gathered::serves(p) ? Gathered::plan(p) : AttentionForward<E>::plan(p);
  }
  static void run(const AttentionParams& p, int64_t item, void* scratch) {
    return Gathered::serves(p) ? Gathered::run(p, item, scratch)
                               : AttentionForward<E>::run(p, item, scratch);
  }
};
