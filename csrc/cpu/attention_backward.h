// Attention backward, one work item: a chunk of key blocks of one (b, key head), all queries that
// see them.
//   p = exp(s - lse),  dp = dout v^T,  ds = p * (dp - delta),  dv = p^T dout,  dk = ds^T q,  dq =
//   ds k
// Keys are the lanes: s[row][key]. Keys and values are packed once per block; queries, dout and dq
// are used where they lie, but for products along queries and keys in pairs of bfloat16. The loop
// over the queries of a block accumulates its dk and dv; dq of a chunk accumulates over its blocks.
// Included by kernels.inl.

constexpr int kGroup = 8;       // rows that are masked, or skipped, together
constexpr int kSumRows = 64;    // terms of one sum of dk and dv
constexpr int kMaxChunk = 192;  // rows between two visits of a key tile; more gain nothing

template <class E>
class AttentionBackward {
 public:
  using Params = AttentionGradParams;
  using A = Compute<E>;
  static constexpr int W = kLanes<A>, NV = kKeyVectors, kTile = KeySide<E>::kTile;

  static Plan plan(const Params& p) {
    Arena arena(nullptr);
    AttentionBackward measure(p, arena);
    const GradPlan& plan = p.plan;
    return {(plan.merge_batch ? 1 : p.B) * (plan.merge_heads ? 1 : p.Hkv) * plan.chunks,
            arena.used()};
  }
  static void run(const Params& p, int64_t item, void* scratch) {
    Arena arena(scratch);
    AttentionBackward(p, arena).run_item(item);
  }

 private:
  enum class Kind : uint8_t { kSkip, kFull, kPartial };

  const Params& p_;
  const bool plain_;  // nothing between the products but the scale, exp and the map
  const A scale_;
  const int D_, Dv_;
  const int query_chunk_;  // a multiple of kSumRows
  int64_t b_ = 0, hkv_ = 0, h_ = 0, chunk_ = 0;
  Range keys_{0, 0};
  ChunkDq<A> dq_;
  A *weights_, *ds_, *cap_;           // [query_chunk_][kTile]
  Lane<E>*weight_lanes_, *ds_lanes_;  // [steps of query_chunk_][kTile]
  Scalar<E>* ds_rows_;                // [query_chunk_][kTile]
  uint64_t *maps_, *kept_;            // [query_chunk_] row maps over the key block
  QuerySide<E> queries_;
  ChunkRows<E> rows_;  // of the chunk of queries, or those gathered of it
  GatheredRows<E> gathered_;
  KeySide<E> block_;
  BiasSums<A> bias_;
  A slope_ = 0;
  double dslope_ = 0;

  AttentionBackward(const Params& p, Arena& arena)
      : p_(p),
        plain_(has_plain_scores(p) && !p.dropout.active()),
        scale_(static_cast<A>(p.score.scale)),
        D_(static_cast<int>(p.D)),
        Dv_(static_cast<int>(p.Dv)),
        query_chunk_(rows_in_cache(int64_t{2 * sizeof(A)} * kKeyBlock * (p.D + p.Dv),
                                   int64_t{sizeof(A)} * (2 * p.D + p.Dv + 2 * kTile), kSumRows,
                                   kMaxChunk)),
        queries_(p, query_chunk_, arena),
        gathered_(p, plain_ && p.mask.table.sparse ? query_chunk_ : 0, arena),
        block_(p, arena),
        bias_(p) {
    weights_ = arena.take<A>(query_chunk_ * kTile);
    ds_ = arena.take<A>(query_chunk_ * kTile);
    cap_ = p.score.softcap != 0 ? arena.take<A>(query_chunk_ * kTile) : nullptr;
    if constexpr (kPair<E> == 1) {
      weight_lanes_ = weights_;
      ds_lanes_ = ds_rows_ = ds_;
    } else {
      weight_lanes_ = arena.take<Lane<E>>(steps<E>(query_chunk_) * kTile);
      ds_lanes_ = arena.take<Lane<E>>(steps<E>(query_chunk_) * kTile);
      ds_rows_ = arena.take<Scalar<E>>(query_chunk_ * kTile);
    }
    maps_ = arena.take<uint64_t>(query_chunk_);
    kept_ = p.dropout.active() ? arena.take<uint64_t>(query_chunk_) : nullptr;
  }

  void run_item(int64_t item) {
    const GradPlan& plan = p_.plan;
    chunk_ = item % plan.chunks;
    const int64_t unit = item / plan.chunks, heads = plan.merge_heads ? 1 : p_.Hkv;
    const Range batch = plan.merge_batch ? Range{0, p_.B} : Range{unit / heads, unit / heads + 1};
    const Range head = plan.merge_heads ? Range{0, p_.Hkv} : Range{unit % heads, unit % heads + 1};
    for (b_ = batch.begin; b_ < batch.end; ++b_)
      for (hkv_ = head.begin; hkv_ < head.end; ++hkv_) run_chunk();
  }

  void run_chunk() {
    const int64_t group = p_.group();
    if (p_.dq) {
      dq_ = chunk_dq<A>(p_, b_, hkv_, chunk_);
      if (dq_.touched) memset(dq_.touched, 0, group * dq_.tiles);
      for (int64_t g = 0; g < group && !dq_.touched; ++g) clear_dq(g, dq_.rows);
    }
    if (p_.alibi_partial)
      for (int64_t g = 0; g < group; ++g) alibi_sum(hkv_ * group + g) = 0;
    if (queries_.whole())
      queries_.read(b_, {hkv_ * group, (hkv_ + 1) * group}, chunk_rows(p_, b_, chunk_));
    const ChunkBlocks blocks = chunk_blocks(p_, chunk_);
    for (int64_t block = blocks.first; block < blocks.end; block += blocks.step)
      run_block({block * kKeyBlock, min64(p_.Lk, (block + 1) * kKeyBlock)});
  }

  double& alibi_sum(int64_t h) {
    return p_.alibi_partial[(b_ * p_.Hq + h) * p_.plan.chunks + chunk_];
  }

  void run_block(Range keys) {
    keys_ = keys;
    block_.clear_gradients();
    const Range rows = p_.mask.query_range(b_, keys);
    if (!rows.empty()) block_.read(b_, hkv_, keys);
    for (int64_t g = 0; g < p_.group(); ++g) {
      h_ = hkv_ * p_.group() + g;
      bias_.begin(b_, h_, chunk_, keys);
      if (!rows.empty()) run_head(g, {rows.begin / kPair<E> * kPair<E>, rows.end});
    }
    block_.write_gradients(b_, hkv_, keys);
  }

  // The g-th head of the group against the key block.
  void run_head(int64_t g, Range rows) {
    dslope_ = 0;
    if (p_.alibi_slopes)
      slope_ = static_cast<A>(load_scalar(p_.alibi_slopes.at(b_, h_, 0), p_.alibi_slopes.dtype));
    const auto next = [&](int64_t i) {
      return p_.mask.next_rows(b_, h_, keys_.begin, {i, rows.end}, query_chunk_);
    };
    for (Range run = next(rows.begin); !run.empty(); run = next(run.end)) {
      if (!queries_.whole()) queries_.read(b_, {h_, h_ + 1}, run);
      rows_.rows = queries_.at(queries_.whole() ? g : 0, run.begin);
      run_queries(run, g);
    }
    if (p_.alibi_partial) alibi_sum(h_) += dslope_;
  }

  void clear_dq(int64_t g, Range rows) {
    A* first = dq_.data + g * dq_.head + (rows.begin - dq_.rows.begin) * dq_.width;
    for (int64_t i = 0; i < rows.end - rows.begin; ++i)
      memset(first + i * dq_.width, 0, sizeof(A) * p_.plan.dq_width);
  }

  // Tiles of dq that nothing was added to yet begin with 0.
  void touch_dq(int64_t g, Range rows) {
    for (int64_t t = rows.begin / kTableTile; t * kTableTile < rows.end; ++t) {
      uint8_t& touched = dq_.touched[g * dq_.tiles + t];
      if (!touched)
        clear_dq(
            g, {max64(dq_.rows.begin, t * kTableTile), min64(dq_.rows.end, (t + 1) * kTableTile)});
      touched = 1;
    }
  }

  // One chunk of queries of head h_ against every tile of the key block.
  void run_queries(Range rows, int64_t g) {
    int n = static_cast<int>(rows.end - rows.begin);
    Kind kinds[kMaxChunk / kGroup];
    if (!map_rows(rows, kinds)) return;
    if (dq_.touched) touch_dq(g, rows);
    A* dq_head = dq_.data + g * dq_.head;
    const int64_t first = (b_ * p_.Hq + h_) * p_.Lq + rows.begin;
    rows_.lse = static_cast<const A*>(p_.row_lse) + first;
    rows_.lse_low = rows_.lse + p_.B * p_.Hq * p_.Lq;
    rows_.delta = static_cast<const A*>(p_.row_delta) + first;
    rows_.finite = p_.row_finite + first;
    rows_.dq = p_.dq ? dq_head + (rows.begin - dq_.rows.begin) * dq_.width : nullptr;
    rows_.ld_dq = dq_.width;
    if (gathered_.active()) {
      n = gathered_.gather(n, maps_, rows_);
      for (int g = 0; g * kGroup < n; ++g) kinds[g] = Kind::kPartial;
    }
    for (int t = 0; keys_.begin + t * kTile < keys_.end; ++t) {
      Kind tile_kinds[kMaxChunk / kGroup];
      for (int g = 0; g * kGroup < n; ++g)
        tile_kinds[g] =
            kinds[g] == Kind::kPartial ? tile_kind(t, g, min64(n, (g + 1) * kGroup)) : kinds[g];
      // Maximal runs of groups that see some key of the tile.
      for (int a = 0, e; a < n; a = e) {
        for (e = a; e < n && tile_kinds[e / kGroup] != Kind::kSkip;)
          e = static_cast<int>(min64(n, e + kGroup));
        if (e == a)
          e = static_cast<int>(min64(n, a + kGroup));
        else
          run_tile(t, rows.begin, a, e, tile_kinds);
      }
    }
    if (gathered_.active()) gathered_.write_dq();
  }

  // The row maps of the chunk over the key block, and what they come to per group of rows.
  bool map_rows(Range rows, Kind* kinds) {
    const uint64_t every = bits_between(0, keys_.end - keys_.begin);
    RowMaps row_maps(p_.mask, b_, keys_.begin);
    bool some = false;
    for (int64_t i = rows.begin; i < rows.end; i += kGroup) {
      const Range group{i, min64(i + kGroup, rows.end)};
      uint64_t* map = maps_ + (i - rows.begin);
      Kind& kind = kinds[(i - rows.begin) / kGroup];
      kind = Kind::kFull;
      if (!p_.mask.covers(b_, {h_, h_ + 1}, group, keys_)) {
        uint64_t any = 0, all = every;
        for (int64_t r = 0; r < group.end - i; ++r) {
          map[r] = row_maps(h_, i + r) & every;
          any |= map[r];
          all &= map[r];
        }
        kind = !any ? Kind::kSkip : all == every ? Kind::kFull : Kind::kPartial;
      }
      if (kind == Kind::kFull)
        for (int64_t r = 0; r < group.end - i; ++r) map[r] = every;
      some = some || kind != Kind::kSkip;
      for (int64_t r = 0; kept_ && r < group.end - i; ++r)
        kept_[i - rows.begin + r] = kept_map(p_.dropout, b_, h_, i + r, keys_.begin, kKeyBlock);
    }
    return some;
  }

  uint64_t tile_bits(int t) const {
    return bits_between(0, keys_.end - keys_.begin - t * kTile) & bits_between(0, kTile);
  }

  Kind tile_kind(int t, int group, int64_t end) const {
    const uint64_t every = tile_bits(t);
    uint64_t any = 0, all = every;
    for (int64_t r = group * kGroup; r < end; ++r) {
      any |= maps_[r] >> (t * kTile);
      all &= maps_[r] >> (t * kTile);
    }
    return !(any & every) ? Kind::kSkip : all == every ? Kind::kFull : Kind::kPartial;
  }

  // Rows a .. e-1 of the chunk against key tile t.
  void run_tile(int t, int64_t first_row, int a, int e, const Kind* kinds) {
    const Lane<E>*kt = block_.k(t), *vt = block_.v(t);
    bool leak_free = true;  // no weight of a masked pair meets a non-finite row
    for (int i = a; i < e; i += kGroup) {
      const int end = static_cast<int>(min64(e, i + kGroup));
      const bool partial = kinds[i / kGroup] == Kind::kPartial;
      bias_.prefetch({first_row + end, first_row + min64(e, end + kGroup)}, keys_.begin + t * kTile,
                     kTile);
      multiply_rows(rows_.rows.q, kt, D_, i, end, [&](int r, Vec<A>(&s)[NV]) ATTN_INLINE_LAMBDA {
        for (int v = 0; v < NV; ++v) {
          if (plain_) s[v] = weight(s[v] * set1(scale_), r);
          if (plain_ && partial) s[v] = select<A>(seen(t, r, v), s[v], Vec<A>{});
          store(weights_ + r * kTile + v * W, s[v]);
        }
      });
      if (!plain_) finish_weights(t, first_row, i, end);
      const Vec<A> scale = set1(scale_);
      multiply_rows(
          rows_.rows.dout, vt, Dv_, i, end, [&](int r, Vec<A>(&dp)[NV]) ATTN_INLINE_LAMBDA {
            for (int v = 0; v < NV; ++v) {
              if (plain_)
                dp[v] =
                    load(weights_ + r * kTile + v * W) * ((dp[v] - set1(rows_.delta[r])) * scale);
              if (plain_ && partial) dp[v] = select<A>(seen(t, r, v), dp[v], Vec<A>{});
              store(ds_ + r * kTile + v * W, dp[v]);
            }
          });
      if (!plain_) finish_ds(t, first_row, i, end);
      if (plain_ && !partial) continue;
      leak_free = leak_free && block_.finite();
      for (int r = i; r < end; ++r) leak_free = leak_free && rows_.finite[r];
    }
    // The last row may share its pair with one that is not of the tile.
    if ((e - a) % kPair<E> != 0 && first_row + e < queries_.reach().end)
      leak_free = leak_free && rows_.finite[e];
    if (leak_free)
      accumulate(t, a, e);
    else
      accumulate_seen(t, first_row, a, e);
  }

  // exp(s - lse). The product scale * (q . k) is rounded before the subtraction, as it was for lse:
  // a score that dominates its row then cancels exactly.
  ATTN_INLINE Vec<A> weight(Vec<A> s, int r) const {
    return exp2(((s - set1(rows_.lse[r])) - set1(rows_.lse_low[r])) * set1(static_cast<A>(kLog2e)));
  }

  // The keys of vector v of tile t that row r sees.
  ATTN_INLINE IntVec<A> seen(int t, int r, int v) const {
    return lanes_from_bits<A>(static_cast<Word<A>>(maps_[r] >> (t * kTile + v * W)));
  }

  // For each row r of i .. end-1: epilogue(r, sum_d rows[r][d] * packed[d][lanes])
  template <class Epilogue>
  ATTN_INLINE void multiply_rows(Rows<E> rows, const Lane<E>* packed, int depth, int i, int end,
                                 const Epilogue& epilogue) {
    for_row_tiles<kRows>(i, end, [&]<int R>(int first) ATTN_INLINE_LAMBDA {
      Vec<A> sums[R][NV];
      multiply_tile<E, R, NV>(rows.data + first * rows.ld, rows.ld, kPair<E>, packed, kTile,
                              steps<E>(depth), sums);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) epilogue(first + r, sums[r]);
    });
  }

  // s -> p: the score terms, then exp(s - lse), 0 where masked. A bias of -inf leaves the row map.
  void finish_weights(int t, int64_t first_row, int i, int end) {
    const Vec<A> scale = set1(scale_);
    const A cap = static_cast<A>(p_.score.softcap);
    const int64_t j0 = keys_.begin + t * kTile;
    const int count = static_cast<int>(min64(kTile, keys_.end - j0));
    for (int r = i; r < end; ++r) {
      const char* bias = p_.bias ? p_.bias.at(b_, h_, first_row + r, j0) : nullptr;
      uint64_t map = maps_[r];
      for (int v = 0; v < NV; ++v) {
        const int shift = t * kTile + v * W;
        A* at = weights_ + r * kTile + v * W;
        Vec<A> s = load(at) * scale;
        if (cap != 0) {
          const Vec<A> t1 = tanh(s / set1(cap));
          store(cap_ + r * kTile + v * W, softcap_derivative(t1, set1(A(1))));
          s = softcap_value(t1, set1(cap));
        }
        if (bias && count > v * W) {
          const int64_t stride = p_.bias.stride[3], skipped = v * W * stride;
          const Vec<A> x = load_elements<A>(bias + skipped * size_of(p_.bias.dtype), p_.bias.dtype,
                                            stride, count - v * W);
          const uint64_t masked =
              bits_from_lanes<A>(x == set1(-std::numeric_limits<A>::infinity()));
          map &= ~(masked << shift);
          s += x;
        }
        if (p_.alibi_slopes) s += alibi_value(set1(slope_), distance(first_row + r, j0 + v * W));
        const IntVec<A> seen = lanes_from_bits<A>(static_cast<Word<A>>(map >> shift));
        store(at, select<A>(seen, weight(s, r), Vec<A>{}));
      }
      maps_[r] = map;
    }
  }

  // |i' - j| for the W keys from j on
  ATTN_INLINE Vec<A> distance(int64_t i, int64_t j) const {
    return abs<A>(set1(static_cast<A>(i + p_.score.alibi_offset - j)) - iota<A>());
  }

  // dp -> ds = p * (dp - delta), with dropout and the derivatives of the score terms; bias and
  // slopes take theirs.
  void finish_ds(int t, int64_t first_row, int i, int end) {
    const Vec<A> scale = set1(static_cast<A>(p_.score.scale)),
                 keep = set1(static_cast<A>(p_.dropout.keep_scale));
    const int64_t j0 = keys_.begin + t * kTile;
    Vec<A> dslope{};
    for (int r = i; r < end; ++r) {
      A* dbias = p_.dbias ? bias_.row(first_row + r) : nullptr;
      for (int v = 0; v < NV; ++v) {
        const int64_t at = r * kTile + v * W;
        Vec<A> weight = load(weights_ + at), dp = load(ds_ + at);
        if (kept_) {
          const IntVec<A> kept =
              lanes_from_bits<A>(static_cast<Word<A>>(kept_[r] >> (t * kTile + v * W)));
          dp = select<A>(kept, dp * keep, Vec<A>{});
          store(weights_ + at, select<A>(kept, weight * keep, Vec<A>{}));
        }
        Vec<A> ds = select<A>(seen(t, r, v), weight * (dp - set1(rows_.delta[r])), Vec<A>{});
        if (dbias) bias_.add(dbias, j0 + v * W, ds);
        if (p_.alibi_partial)
          dslope = fma(ds, alibi_derivative(distance(first_row + r, j0 + v * W)), dslope);
        if (cap_) ds *= load(cap_ + at);
        store(ds_ + at, ds * scale);
      }
    }
    dslope_ += static_cast<double>(sum_lanes<A>(dslope));
  }

  // Weights and ds of rows a .. e-1 as operands: pairs of rows for dv and dk, rows of keys for dq.
  void pack_products(int t, int a, int e) {
    IntVec<A> here[NV];  // keys of the tile
    for (int v = 0; v < NV; ++v)
      here[v] = lanes_from_bits<A>(static_cast<Word<A>>(tile_bits(t) >> (v * W)));
    for (int r = a; r < e; r += 2)
      for (int v = 0; v < NV; ++v) {
        const int at = r * kTile + v * W, next = at + kTile, pair = r / 2 * kTile + v * W;
        const bool both = r + 1 < e;
        const Vec<A> weight[2] = {load(weights_ + at), both ? load(weights_ + next) : Vec<A>{}};
        const Vec<A> ds[2] = {load(ds_ + at), both ? load(ds_ + next) : Vec<A>{}};
        store_operands<E>(weight_lanes_ + pair, weight);
        store_operands<E>(ds_lanes_ + pair, ds);
        for (int x = 0; x < 1 + both; ++x) {
          const FloatHalves row = round_bfloat16(select<A>(here[v], ds[x], Vec<A>{}));
          memcpy(ds_rows_ + at + x * kTile, &row, sizeof(row));
        }
      }
  }

  // dv += p^T dout, dk += ds^T q, dq += ds k
  void accumulate(int t, int a, int e) {
    if constexpr (kPair<E> > 1) pack_products(t, a, e);
    for (int i = a, end; i < e; i = end) {
      end = gathered_.end_of_sum(i, e, kSumRows);
      const int64_t lanes = i / kPair<E> * kTile;
      const Rows<E> q = rows_.rows.q_down, dout = rows_.rows.dout_down;
      if (p_.dv)
        accumulate_lanes<E, NV>(weight_lanes_ + lanes, kTile, dout.data + i * dout.ld, dout.ld,
                                end - i, Dv_, nullptr, block_.dv(t));
      if (p_.dk)
        accumulate_lanes<E, NV>(ds_lanes_ + lanes, kTile, q.data + i * q.ld, q.ld, end - i, D_,
                                nullptr, block_.dk(t));
    }
    if (p_.dq) {
      const int n = static_cast<int>(min64(kTile, keys_.end - keys_.begin - t * kTile));
      accumulate_rows<E>(ds_rows_ + a * kTile, kTile, block_.k_down(t), block_.ld_down(), e - a, n,
                         static_cast<int>(p_.plan.dq_width), rows_.dq + a * rows_.ld_dq,
                         rows_.ld_dq);
    }
  }

  // The same, pair by pair: 0 * NaN of a masked pair must not reach a gradient.
  void accumulate_seen(int t, int64_t first_row, int a, int e) {
    for (int r = a; r < e; ++r)
      for (uint64_t map = maps_[r] & (tile_bits(t) << (t * kTile)); map; map &= map - 1) {
        const int j = __builtin_ctzll(map) - t * kTile;
        const int64_t i = first_row + gathered_.place_of(r), key = keys_.begin + t * kTile + j;
        const A weight = weights_[r * kTile + j], ds = ds_[r * kTile + j];
        A *dkt = block_.dk(t) + j, *dvt = block_.dv(t) + j;
        for (int d = 0; d < Dv_; ++d) dvt[d * kTile] += weight * element(p_.grad_out, h_, i, d);
        for (int d = 0; d < D_; ++d) dkt[d * kTile] += ds * element(p_.query, h_, i, d);
        if (!p_.dq) continue;
        A* dq = rows_.dq + r * rows_.ld_dq;
        for (int d = 0; d < D_; ++d) dq[d] += ds * element(p_.key, hkv_, key, d);
      }
  }
  A element(const View& view, int64_t h, int64_t l, int d) const {
    return static_cast<A>(load_scalar(view.at(b_, h, l, d), view.dtype));
  }
};
