// Attention forward, one work item: a block of query rows of one (b, key head).
//   out = softmax(s) v,  lse = log(sum_j exp(s_j)),  s as in core/score.h
// Rows are (query, head of the group) pairs, heads fastest, one row per lane: scores and outputs
// are kept transposed, s[key][row] and o[column][row], so that the softmax needs no horizontal
// reduction, keys and values are read where they lie, and the heads of a group share them. Included
// by kernels.inl.

constexpr int kMaxTilesPerItem = 4;  // that share a block of keys; more gain nothing

template <class E>
class AttentionForward {
 public:
  using Params = AttentionParams;
  using A = Compute<E>;
  static constexpr int W = kLanes<A>, kTileLanes = kMaxVectors * W;

  static Plan plan(const AttentionParams& p) {
    Arena arena(nullptr);
    AttentionForward measure(p, arena);
    return {p.B * p.Hkv * measure.blocks_, arena.used()};
  }
  static void run(const AttentionParams& p, int64_t item, void* scratch) {
    Arena arena(scratch);
    AttentionForward(p, arena).run_item(item);
  }

  // The maximum and sum of one row, without a sink.
  static void row_state(const AttentionParams& p, int64_t b, int64_t h, int64_t i, void* scratch,
                        A* m, A* l) {
    Arena arena(scratch);
    AttentionForward forward(p, arena);
    forward.b_ = b;
    forward.hkv_ = h / p.group();
    RowTile<E>& tile = forward.tiles_[0];
    forward.start_tile(tile, i * p.group() + h % p.group(), 1);
    forward.visit_blocks(tile.keys, 1);
    *m = tile.m[0] * forward.unit_;
    *l = tile.l[0];
  }

 private:
  const AttentionParams& p_;
  // Plain scores are kept as products q . k, the sign of the scale in q and its size in unit_,
  // which turns a score into s; others have gone through adjust_scores and are s itself.
  const bool plain_;
  const A scale_, unit_;
  const int64_t rows_;  // of one key head
  int tiles_per_item_;
  int64_t blocks_;
  int64_t b_ = 0, hkv_ = 0;
  RowTile<E>* tiles_;
  A* scores_;  // [kKeyBlock][lanes]
  RowBias<E> bias_;
  Lane<E>* weights_;  // [steps of kKeyBlock][lanes], in the place of the scores
  // Copies of a block where its rows can't be read where they lie.
  Scalar<E>*key_block_ = nullptr, *value_block_ = nullptr;
  Rows<E> values_;  // of the block
  int value_rows_ = 0;
  std::optional<bool> values_finite_;
  LaneMaps<A>* maps_;
  LaneMaps<A>* kept_;

  AttentionForward(const AttentionParams& p, Arena& arena)
      : p_(p),
        plain_(has_plain_scores(p)),
        scale_(static_cast<A>(std::abs(p.score.scale))),
        unit_(plain_ ? scale_ : A(1)),
        rows_(p.group() * p.Lq) {
    const int64_t row_bytes = sizeof(A) * (p.D + p.Dv);
    const int most =
        rows_in_cache(kKeyBlock * row_bytes, kTileLanes * row_bytes, 1, kMaxTilesPerItem);
    tiles_per_item_ = static_cast<int>(min64(most, (rows_ + kTileLanes - 1) / kTileLanes));
    blocks_ = tiles_per_item_ ? (rows_ + rows_per_item() - 1) / rows_per_item() : 0;
    tiles_ = arena.take<RowTile<E>>(tiles_per_item_);
    Lane<E>* q = arena.take<Lane<E>>(tiles_per_item_ * steps<E>(p.D) * kTileLanes);
    A* o = arena.take<A>(tiles_per_item_ * p.Dv * kTileLanes);
    scores_ = arena.take<A>(kKeyBlock * kTileLanes);
    weights_ = reinterpret_cast<Lane<E>*>(scores_);
    bias_ = RowBias<E>(p, arena);
    if (!reads_in_place(p.key, p.D))
      key_block_ = arena.take<Scalar<E>>(kKeyBlock * steps<E>(p.D) * kPair<E>);
    if (kPair<E> > 1 || !reads_in_place(p.value, p.Dv))
      value_block_ = arena.take<Scalar<E>>(kKeyBlock * p.Dv);
    maps_ = arena.take<LaneMaps<A>>(1);
    kept_ = p.dropout.active() ? arena.take<LaneMaps<A>>(1) : nullptr;
    for (int t = 0; tiles_ && t < tiles_per_item_; ++t) {
      tiles_[t].q = q + t * steps<E>(p.D) * kTileLanes;
      tiles_[t].o = o + t * p.Dv * kTileLanes;
    }
  }

  bool reads_in_place(const View& view, int64_t columns) const {
    constexpr int kReadsPerCopy = 3;
    return has_natural_rows<E>(view, columns) &&
           (tiles_per_item_ < kReadsPerCopy || has_close_rows(view, columns));
  }

  int64_t rows_per_item() const { return int64_t{tiles_per_item_} * kTileLanes; }

  // Items count down within a head: with a causal mask the last rows are the heaviest and go first.
  void run_item(int64_t item) {
    b_ = item / blocks_ / p_.Hkv;
    hkv_ = item / blocks_ % p_.Hkv;
    const int64_t row0 = (blocks_ - 1 - item % blocks_) * rows_per_item();
    const int64_t end = min64(rows_, row0 + rows_per_item());
    int tiles = 0;
    Range keys{p_.Lk, 0};
    for (int64_t row = row0; row < end; row += kTileLanes) {
      RowTile<E>& tile = tiles_[tiles++];
      start_tile(tile, row, static_cast<int>(min64(kTileLanes, end - row)));
      if (!tile.keys.empty())
        keys = {min64(keys.begin, tile.keys.begin), max64(keys.end, tile.keys.end)};
    }
    visit_blocks(keys, tiles);
    for (int t = 0; t < tiles; ++t) finish_tile(tiles_[t]);
  }

  void start_tile(RowTile<E>& tile, int64_t row, int count) {
    const int64_t group = p_.group();
    tile.count = count;
    tile.vectors = (count + W - 1) / W;
    const char* rows[kTileLanes];
    int64_t i = row / group, g = row % group;
    for (int lane = 0; lane < kTileLanes; ++lane) {
      tile.i[lane] = i;
      tile.h[lane] = hkv_ * group + g;
      rows[lane] = p_.query.at(b_, tile.h[lane], i);
      if (lane + 1 < count && ++g == group) g = 0, ++i;
    }
    tile.rows = {tile.i[0], tile.i[count - 1] + 1};
    tile.keys = p_.mask.key_range(b_, tile.rows);
    pack_operands<E>(rows, tile.vectors * W, p_.query, static_cast<int>(p_.D), p_.score.scale < 0,
                     tile.q, kTileLanes);
    memset(tile.o, 0, sizeof(A) * p_.Dv * kTileLanes);
    for (int lane = 0; lane < kTileLanes; ++lane) {
      tile.m[lane] = -std::numeric_limits<A>::infinity();
      tile.l[lane] = 0;
    }
    for (int lane = 0; p_.alibi_slopes && lane < kTileLanes; ++lane)
      tile.slope[lane] = static_cast<A>(
          load_scalar(p_.alibi_slopes.at(b_, tile.h[lane], 0), p_.alibi_slopes.dtype));
  }

  void visit_blocks(Range keys, int tiles) {
    // At fixed places, so that results don't depend on the rows that share an item; and row maps
    // read whole stored words.
    keys.begin = keys.begin / kKeyBlock * kKeyBlock;
    const Range rows{tiles_[0].rows.begin, tiles_[tiles - 1].rows.end};
    const auto next = [&](int64_t j) {
      const int64_t begin = p_.mask.next_keys(b_, heads(), rows, j);
      return Range{begin, min64(begin + kKeyBlock, keys.end)};
    };
    for (Range block = next(keys.begin), after; !block.empty(); block = after) {
      after = next(block.begin + kKeyBlock);
      prefetch_rows(p_.key, b_, hkv_, after, p_.D);
      prefetch_rows(p_.value, b_, hkv_, after, p_.Dv);
      visit_block(block, tiles);
    }
  }

  Rows<E> read_keys(Range block) const {
    const View& key = p_.key;
    const char* rows = key.at(b_, hkv_, block.begin);
    if (!key_block_) return {reinterpret_cast<const Scalar<E>*>(rows), key.stride[2]};
    const int64_t ld = steps<E>(p_.D) * kPair<E>;
    copy_operands<E>(rows, key.stride[2] * size_of(key.dtype), key,
                     static_cast<int>(block.end - block.begin), p_.D, key_block_, ld);
    return {key_block_, ld};
  }

  Rows<E> read_values(Range block) const {
    const View& value = p_.value;
    const char* rows = value.at(b_, hkv_, block.begin);
    const int64_t row_bytes = value.stride[2] * size_of(value.dtype);
    const int n = static_cast<int>(block.end - block.begin);
    if constexpr (kPair<E> > 1)
      interleave_rows(rows, row_bytes, value.stride[3], n, p_.Dv, value_block_, p_.Dv);
    else if (value_block_)
      copy_operands<E>(rows, row_bytes, value, n, p_.Dv, value_block_, p_.Dv);
    else
      return {reinterpret_cast<const Scalar<E>*>(rows), value.stride[2]};
    return {value_block_, p_.Dv};
  }

  Range heads() const { return {hkv_ * p_.group(), (hkv_ + 1) * p_.group()}; }

  void visit_block(Range block, int tiles) {
    const Rows<E> k = read_keys(block), v = values_ = read_values(block);
    value_rows_ = static_cast<int>(steps<E>(block.end - block.begin));
    values_finite_.reset();
    for (int t = 0; t < tiles; ++t) {
      Range keys{max64(block.begin, tiles_[t].keys.begin), min64(block.end, tiles_[t].keys.end)};
      if (keys.empty()) continue;
      const int64_t skipped = (keys.begin - block.begin) / kPair<E> * kPair<E>;
      keys.begin = block.begin + skipped;
      const Rows<E> kt{k.data + skipped * k.ld, k.ld}, vt{v.data + skipped * v.ld, v.ld};
      switch (tiles_[t].vectors) {
        case 1:
          visit_tile<1>(tiles_[t], keys, kt, vt);
          break;
        case 2:
          visit_tile<2>(tiles_[t], keys, kt, vt);
          break;
        default:
          visit_tile<3>(tiles_[t], keys, kt, vt);
      }
    }
  }

  enum class Kind { kSkip, kFull, kPartial };

  // Narrows the keys to those that some lane sees, and sets the lanes' maps over them.
  Kind map_lanes(const RowTile<E>& tile, Range& keys) {
    if (p_.mask.covers(b_, heads(), tile.rows, keys)) return Kind::kFull;
    RowMaps row_maps(p_.mask, b_, keys.begin);
    uint64_t map[kTileLanes], any = 0, all = ~uint64_t{0};
    const uint64_t every = bits_between(0, keys.end - keys.begin);
    for (int lane = 0; lane < tile.vectors * W; ++lane) {
      map[lane] = row_maps(tile.h[lane], tile.i[lane]) & every;
      any |= map[lane];
      all &= map[lane];
    }
    if (!any) return Kind::kSkip;
    const int first = __builtin_ctzll(any) / kPair<E> * kPair<E>, last = 63 - __builtin_clzll(any);
    keys = {keys.begin + first, keys.begin + last + 1};
    if (all == any && any == bits_between(first, last + 1)) return Kind::kFull;
    for (int lane = 0; lane < tile.vectors * W; ++lane) maps_->set(lane, map[lane] >> first);
    return Kind::kPartial;
  }

  template <int NV>
  void visit_tile(RowTile<E>& tile, Range keys, Rows<E> k, Rows<E> v) {
    const int64_t block = keys.begin;
    const Kind kind = map_lanes(tile, keys);
    if (kind == Kind::kSkip) return;
    k.data += (keys.begin - block) * k.ld, v.data += (keys.begin - block) * v.ld;
    const int n = static_cast<int>(keys.end - keys.begin);
    const bool partial = kind == Kind::kPartial;
    Vec<A> m[NV], alpha[NV];
    for (int x = 0; x < NV; ++x) m[x] = load(tile.m + x * W);
    multiply_keys<NV>(tile, keys, k, m, plain_ && !partial);
    if (!plain_)
      adjust_scores<NV>(tile, keys, partial, m);
    else if (partial)
      mask_scores<NV>(n, m);
    if (kept_) map_kept<NV>(tile, keys);
    exponentiate<NV>(tile, n, m, alpha);
    // The last key may share its pair with one that is not of the tile.
    const bool some_masked = partial || bias_ || n % kPair<E> != 0;
    if (some_masked && !values_finite())
      accumulate_seen<NV>(tile, partial, v, n, alpha);
    else
      accumulate_lanes<E, NV>(weights_, kTileLanes, v.data, v.ld, n, static_cast<int>(p_.Dv), alpha,
                              tile.o);
  }

  bool values_finite() {
    if (!values_finite_)
      values_finite_ =
          operands_finite<E>(values_.data, values_.ld * kPair<E>, value_rows_, p_.Dv * kPair<E>);
    return *values_finite_;
  }

  // s[j] = k[j] . q; with `track` the maximum over j goes to m. Meanwhile the biases of the keys
  // that may come next are fetched.
  template <int NV>
  void multiply_keys(const RowTile<E>& tile, Range keys, Rows<E> k, Vec<A> (&m)[NV], bool track) {
    const int n = static_cast<int>(keys.end - keys.begin);
    const Range next{keys.end, min64(p_.Lk, keys.end + kKeyBlock)};
    const bool biased(bias_);
    for_row_tiles<kRows>(0, n, [&]<int R>(int j) ATTN_INLINE_LAMBDA {
      constexpr int kLanesPerKey = kTileLanes / kKeyBlock + 1;
      if (biased) bias_.prefetch(b_, tile, next, j * kLanesPerKey, (j + R) * kLanesPerKey);
      Vec<A> s[R][NV];
      multiply_tile<E, R, NV>(k.data + j * k.ld, k.ld, kPair<E>, tile.q, kTileLanes, steps<E>(p_.D),
                              s);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(scores_ + (j + r) * kTileLanes + v * W, s[r][v]);
      if (track)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v)
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) m[v] = max<A>(m[v], s[r][v]);
    });
  }

  // s <- -inf where masked; m <- max(m, s)
  template <int NV>
  void mask_scores(int n, Vec<A> (&m)[NV]) {
    for (int j = 0; j < n; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        A* at = scores_ + j * kTileLanes + v * W;
        const Vec<A> s =
            select<A>(maps_->test(j, v), load(at), set1(-std::numeric_limits<A>::infinity()));
        m[v] = max<A>(m[v], s);
        store(at, s);
      }
  }

  // s <- softcap(scale * s) + bias - slope * |i' - j|, -inf where masked; m <- max(m, s)
  template <int NV>
  void adjust_scores(const RowTile<E>& tile, Range keys, bool partial, Vec<A> (&m)[NV]) {
    const int n = static_cast<int>(keys.end - keys.begin);
    if (bias_) bias_.read(b_, tile, keys, NV * W);
    const Vec<A> minus_infinity = set1(-std::numeric_limits<A>::infinity());
    const A cap = static_cast<A>(p_.score.softcap);
    Vec<A> distance[NV] = {};  // i' - j
    for (int v = 0; v < NV; ++v)
      for (int l = 0; l < W; ++l)
        distance[v][l] = static_cast<A>(tile.i[v * W + l] + p_.score.alibi_offset - keys.begin);
    for (int j = 0; j < n; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        A* at = scores_ + j * kTileLanes + v * W;
        Vec<A> s = load(at) * set1(scale_);
        if (cap != 0) s = softcap_value(tanh(s / set1(cap)), set1(cap));
        if (bias_) {
          const Vec<A> bias = bias_.at(j, v);
          s = select<A>(bias == minus_infinity, minus_infinity, s + bias);
        }
        if (p_.alibi_slopes)
          s += alibi_value(load(tile.slope + v * W), abs<A>(distance[v] - set1(static_cast<A>(j))));
        if (partial) s = select<A>(maps_->test(j, v), s, minus_infinity);
        m[v] = max<A>(m[v], s);
        store(at, s);
      }
  }

  template <int NV>
  void map_kept(const RowTile<E>& tile, Range keys) {
    const int n = static_cast<int>(keys.end - keys.begin);
    for (int lane = 0; lane < NV * W; ++lane)
      kept_->set(lane, kept_map(p_.dropout, b_, tile.h[lane], tile.i[lane], keys.begin, n));
  }

  // p = exp(s - m), alpha = exp(m_old - m), l <- l * alpha + sum p; then dropout. While no key has
  // come, m is -inf and 0 stands in.
  template <int NV>
  void exponentiate(RowTile<E>& tile, int n, const Vec<A> (&m)[NV], Vec<A> (&alpha)[NV]) {
    const Vec<A> unit = set1(static_cast<A>(unit_ * kLog2e));
    Vec<A> base[NV], sum[NV];
    for (int v = 0; v < NV; ++v) {
      base[v] = select<A>(m[v] == set1(-std::numeric_limits<A>::infinity()), Vec<A>{}, m[v]);
      alpha[v] = exp2((load(tile.m + v * W) - base[v]) * unit);
      sum[v] = Vec<A>{};
      store(tile.m + v * W, m[v]);
    }
    // Locals: the stores below might change members, for all that the compiler knows.
    A* const scores = scores_;
    Lane<E>* const weights = weights_;
    const bool drop = kept_ != nullptr;
    if (n % kPair<E> != 0)  // the partner of the last key weighs 0
      for (int v = 0; v < NV; ++v)
        store(scores + n * kTileLanes + v * W, set1(-std::numeric_limits<A>::infinity()));
    for (int j = 0; j < n; j += kPair<E>)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        Vec<A> weight[kPair<E>];
        for (int x = 0; x < kPair<E>; ++x) {
          weight[x] = exp2((load(scores + (j + x) * kTileLanes + v * W) - base[v]) * unit);
          sum[v] += weight[x];
          if (drop) weight[x] = keep(weight[x], j + x, v);
        }
        store_operands<E>(weights + j / kPair<E> * kTileLanes + v * W, weight);
      }
    for (int v = 0; v < NV; ++v) store(tile.l + v * W, fma(load(tile.l + v * W), alpha[v], sum[v]));
  }

  // p / (1 - dropout_p) where kept, 0 elsewhere
  ATTN_INLINE Vec<A> keep(Vec<A> weight, int j, int v) const {
    const Vec<A> scale = set1(static_cast<A>(p_.dropout.keep_scale));
    return select<A>(kept_->test(j, v), weight * scale, Vec<A>{});
  }

  // o <- o * alpha + sum over the keys a row sees of p v: 0 * NaN must not reach the other rows.
  template <int NV>
  void accumulate_seen(RowTile<E>& tile, bool partial, Rows<E> values, int n,
                       const Vec<A> (&alpha)[NV]) {
    const Vec<A> minus_infinity = set1(-std::numeric_limits<A>::infinity());
    for (int c = 0; c < p_.Dv; ++c)
      for (int v = 0; v < NV; ++v) {
        A* at = tile.o + c * kTileLanes + v * W;
        Vec<A> o = load(at) * alpha[v];
        for (int j = 0; j < n; ++j) {
          const int part = j % kPair<E>;
          const Vec<A> weight = load_operand<E>(weights_ + j / kPair<E> * kTileLanes + v * W, part);
          const A value = to_compute<E>(values.data[(j - part) * values.ld + c * kPair<E> + part]);
          Vec<A> next = fma(weight, set1(value), o);
          if (partial) next = select<A>(maps_->test(j, v), next, o);
          if (bias_) next = select<A>(bias_.at(j, v) == minus_infinity, o, next);
          o = next;
        }
        store(at, o);
      }
  }

  // out = o / l, lse = m + log l; a row that saw no key has l = 0. A sink is one more key of that
  // score and value 0.
  void finish_tile(RowTile<E>& tile) {
    char* rows[kTileLanes];
    A factor[kTileLanes];
    for (int lane = 0; lane < tile.vectors * W; ++lane) {
      const int64_t h = tile.h[lane], i = tile.i[lane];
      double m = static_cast<double>(tile.m[lane]) * unit_, l = tile.l[lane], kept = 1;
      if (p_.sinks) {
        const double sink = load_scalar(p_.sinks.at(0, h, 0), p_.sinks.dtype);
        const double top = std::fmax(m, sink);
        kept = l == 0 ? 0 : std::exp(m - top);
        l = l * kept + (sink == -INFINITY ? 0 : std::exp(sink - top));
        m = top;
      }
      rows[lane] = p_.out.at(b_, h, i);
      factor[lane] = static_cast<A>(l == 0 ? 0 : kept / l);
      if (lane < tile.count)
        store_scalar(p_.lse.at(b_, h, i), p_.lse.dtype,
                     l == 0          ? -INFINITY
                     : m == INFINITY ? m
                                     : m + std::log(l));
    }
    unpack_lanes<A>(tile.o, kTileLanes, factor, tile.count, static_cast<int>(p_.Dv), rows,
                    p_.out.dtype, p_.out.stride[3]);
  }
};
