// Attention backward, one work item: a chunk of key blocks of one (b, key head), all queries that
// see them.
//   p = exp(s - lse),  dp = dout v^T,  ds = p * (dp - delta),  dv = p^T dout,  dk = ds^T q,  dq =
//   ds k
// Keys are the lanes: s[row][key]. Keys and values are packed once per block; queries, dout and dq
// are used where they lie. The loop over the queries of a block accumulates its dk and dv; dq of a
// chunk accumulates over its blocks. Included by kernels.inl.

constexpr int kKeyVectors = 2;    // of lanes per key tile
constexpr int kGroup = 8;         // rows that are masked, or skipped, together
constexpr int kQueryChunk = 192;  // rows between two visits of a key tile; a multiple of kGroup

template <class A>
class AttentionBackward {
 public:
  using Params = AttentionGradParams;
  static constexpr int W = kLanes<A>, NV = kKeyVectors, kTile = NV * W, kTiles = kKeyBlock / kTile;

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
  int64_t b_ = 0, hkv_ = 0, h_ = 0, chunk_ = 0;
  Range keys_{0, 0};
  ChunkDq<A> dq_;
  bool keys_finite_ = true;
  A *kt_, *vt_, *dkt_, *dvt_;               // [kTiles][D or Dv][kTile]
  A *weights_, *ds_, *cap_;                 // [kQueryChunk][kTile]
  A *key_rows_, *query_rows_, *dout_rows_;  // copies where rows can't be read where they lie
  uint64_t *maps_, *kept_;                  // [kQueryChunk] row maps over the key block
  const A *k_ = nullptr, *q_ = nullptr, *dout_ = nullptr, *lse_ = nullptr, *lse_low_ = nullptr,
          *delta_ = nullptr;
  const uint8_t* row_finite_ = nullptr;
  int64_t ldk_ = 0, ldq_ = 0, ldo_ = 0;
  A slope_ = 0;
  double dslope_ = 0;

  AttentionBackward(const Params& p, Arena& arena)
      : p_(p),
        plain_(has_plain_scores(p) && !p.dropout.active()),
        scale_(static_cast<A>(p.score.scale)),
        D_(static_cast<int>(p.D)),
        Dv_(static_cast<int>(p.Dv)) {
    kt_ = arena.take<A>(kKeyBlock * D_);
    vt_ = arena.take<A>(kKeyBlock * Dv_);
    dkt_ = arena.take<A>(kKeyBlock * D_);
    dvt_ = arena.take<A>(kKeyBlock * Dv_);
    weights_ = arena.take<A>(kQueryChunk * kTile);
    ds_ = arena.take<A>(kQueryChunk * kTile);
    cap_ = p.score.softcap != 0 ? arena.take<A>(kQueryChunk * kTile) : nullptr;
    // dq needs whole vectors of key columns.
    const bool whole = has_natural_rows<A>(p.key) && D_ % W == 0;
    key_rows_ = p.dq && !whole ? arena.take<A>(kKeyBlock * p.plan.dq_width) : nullptr;
    query_rows_ = has_natural_rows<A>(p.query) ? nullptr : arena.take<A>(kQueryChunk * D_);
    dout_rows_ = has_natural_rows<A>(p.grad_out) ? nullptr : arena.take<A>(kQueryChunk * Dv_);
    maps_ = arena.take<uint64_t>(kQueryChunk);
    kept_ = p.dropout.active() ? arena.take<uint64_t>(kQueryChunk) : nullptr;
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
      for (int64_t g = 0; g < group; ++g)
        for (int64_t i = 0; i < dq_.rows.end - dq_.rows.begin; ++i)
          memset(dq_.data + g * dq_.head + i * dq_.width, 0, sizeof(A) * p_.plan.dq_width);
    }
    if (p_.alibi_partial)
      for (int64_t g = 0; g < group; ++g) alibi_sum(hkv_ * group + g) = 0;
    const ChunkBlocks blocks = chunk_blocks(p_, chunk_);
    for (int64_t block = blocks.first; block < blocks.end; block += blocks.step)
      run_block({block * kKeyBlock, min64(p_.Lk, (block + 1) * kKeyBlock)});
  }

  double& alibi_sum(int64_t h) {
    return p_.alibi_partial[(b_ * p_.Hq + h) * p_.plan.chunks + chunk_];
  }

  void run_block(Range keys) {
    keys_ = keys;
    memset(dkt_, 0, sizeof(A) * kKeyBlock * D_);
    memset(dvt_, 0, sizeof(A) * kKeyBlock * Dv_);
    const Range rows = p_.mask.query_range(b_, keys);
    if (!rows.empty()) {
      pack_block();
      for (int64_t g = 0; g < p_.group(); ++g) {
        h_ = hkv_ * p_.group() + g;
        dslope_ = 0;
        if (p_.alibi_slopes)
          slope_ =
              static_cast<A>(load_scalar(p_.alibi_slopes.at(b_, h_, 0), p_.alibi_slopes.dtype));
        const auto next = [&](int64_t i) {
          return p_.mask.next_rows(b_, h_, keys.begin, {i, rows.end}, kQueryChunk);
        };
        for (Range run = next(rows.begin); !run.empty(); run = next(run.end))
          run_queries(run, dq_.data + g * dq_.head);
        if (p_.alibi_partial) alibi_sum(h_) += dslope_;
      }
    }
    if (p_.dk) unpack_block(dkt_, D_, p_.dk);
    if (p_.dv) unpack_block(dvt_, Dv_, p_.dv);
  }

  // kt[d][key] = k[key][d], vt[d][key] = v[key][d]; lanes behind the last key repeat it and
  // are not read back.
  void pack_block() {
    const char *k[kKeyBlock], *v[kKeyBlock];
    const int n = static_cast<int>(keys_.end - keys_.begin);
    for (int j = 0; j < kKeyBlock; ++j) {
      const int64_t key = keys_.begin + (j < n ? j : n - 1);
      k[j] = p_.key.at(b_, hkv_, key);
      v[j] = p_.value.at(b_, hkv_, key);
    }
    for (int t = 0; t * kTile < n; ++t) {
      pack_lanes<A>(k + t * kTile, kTile, p_.key.dtype, p_.key.stride[3], D_, A(1),
                    kt_ + t * kTile * D_, kTile);
      pack_lanes<A>(v + t * kTile, kTile, p_.value.dtype, p_.value.stride[3], Dv_, A(1),
                    vt_ + t * kTile * Dv_, kTile);
    }
    if (!p_.dq) return;
    k_ = reinterpret_cast<const A*>(k[0]), ldk_ = p_.key.stride[2];
    if (key_rows_) {
      ldk_ = p_.plan.dq_width;
      memset(key_rows_, 0, sizeof(A) * n * ldk_);
      copy_rows<A>(k[0], p_.key.stride[2] * size_of(p_.key.dtype), p_.key.dtype, p_.key.stride[3],
                   n, D_, key_rows_, static_cast<int>(ldk_));
      k_ = key_rows_;
    }
    keys_finite_ = rows_finite(k_, ldk_, n, D_);
  }

  void unpack_block(const A* packed, int columns, const View& out) {
    A one[kTile];
    for (A& x : one) x = 1;
    for (int64_t j = keys_.begin; j < keys_.end; j += kTile) {
      char* rows[kTile];
      const int count = static_cast<int>(min64(kTile, keys_.end - j));
      for (int l = 0; l < count; ++l) rows[l] = out.at(b_, hkv_, j + l);
      unpack_lanes<A>(packed + (j - keys_.begin) * columns, kTile, one, count, columns, rows,
                      out.dtype, out.stride[3]);
    }
  }

  static const A* read_rows(const View& view, int64_t b, int64_t h, Range rows, int columns,
                            A* copy, int64_t& ld) {
    ld = copy ? columns : view.stride[2];
    if (!copy) return reinterpret_cast<const A*>(view.at(b, h, rows.begin));
    copy_rows<A>(view.at(b, h, rows.begin), view.stride[2] * size_of(view.dtype), view.dtype,
                 view.stride[3], static_cast<int>(rows.end - rows.begin), columns, copy, columns);
    return copy;
  }

  // One chunk of queries of head h_ against every tile of the key block.
  void run_queries(Range rows, A* dq_head) {
    const int n = static_cast<int>(rows.end - rows.begin);
    Kind kinds[kQueryChunk / kGroup];
    if (!map_rows(rows, kinds)) return;
    q_ = read_rows(p_.query, b_, h_, rows, D_, query_rows_, ldq_);
    dout_ = read_rows(p_.grad_out, b_, h_, rows, Dv_, dout_rows_, ldo_);
    const int64_t first = (b_ * p_.Hq + h_) * p_.Lq + rows.begin;
    lse_ = static_cast<const A*>(p_.row_lse) + first;
    lse_low_ = lse_ + p_.B * p_.Hq * p_.Lq;
    delta_ = static_cast<const A*>(p_.row_delta) + first;
    row_finite_ = p_.row_finite + first;
    for (int t = 0; keys_.begin + t * kTile < keys_.end; ++t) {
      Kind tile_kinds[kQueryChunk / kGroup];
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
          run_tile(t, rows.begin, a, e, tile_kinds, dq_head);
      }
    }
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
  void run_tile(int t, int64_t first_row, int a, int e, const Kind* kinds, A* dq_head) {
    const A *kt = kt_ + t * kTile * D_, *vt = vt_ + t * kTile * Dv_;
    bool leak_free = true;  // no weight of a masked pair meets a non-finite row
    for (int i = a; i < e; i += kGroup) {
      const int end = static_cast<int>(min64(e, i + kGroup));
      const bool partial = kinds[i / kGroup] == Kind::kPartial;
      multiply_rows(q_, ldq_, kt, D_, i, end, [&](int r, Vec<A>(&s)[NV]) ATTN_INLINE_LAMBDA {
        for (int v = 0; v < NV; ++v) {
          if (plain_) s[v] = weight(s[v] * set1(scale_), r);
          if (plain_ && partial) s[v] = select<A>(seen(t, r, v), s[v], Vec<A>{});
          store(weights_ + r * kTile + v * W, s[v]);
        }
      });
      if (!plain_) finish_weights(t, first_row, i, end);
      const Vec<A> scale = set1(scale_);
      multiply_rows(dout_, ldo_, vt, Dv_, i, end, [&](int r, Vec<A>(&dp)[NV]) ATTN_INLINE_LAMBDA {
        for (int v = 0; v < NV; ++v) {
          if (plain_)
            dp[v] = load(weights_ + r * kTile + v * W) * ((dp[v] - set1(delta_[r])) * scale);
          if (plain_ && partial) dp[v] = select<A>(seen(t, r, v), dp[v], Vec<A>{});
          store(ds_ + r * kTile + v * W, dp[v]);
        }
      });
      if (!plain_) finish_ds(t, first_row, i, end);
      if (plain_ && !partial) continue;
      leak_free = leak_free && keys_finite_;
      for (int r = i; r < end; ++r) leak_free = leak_free && row_finite_[r];
    }
    if (leak_free)
      accumulate(t, first_row, a, e, dq_head);
    else
      accumulate_seen(t, first_row, a, e, dq_head);
  }

  // exp(s - lse). The product scale * (q . k) is rounded before the subtraction, as it was for lse:
  // a score that dominates its row then cancels exactly.
  ATTN_INLINE Vec<A> weight(Vec<A> s, int r) const {
    return exp2(((s - set1(lse_[r])) - set1(lse_low_[r])) * set1(static_cast<A>(kLog2e)));
  }

  // The keys of vector v of tile t that row r sees.
  ATTN_INLINE IntVec<A> seen(int t, int r, int v) const {
    return lanes_from_bits<A>(static_cast<Word<A>>(maps_[r] >> (t * kTile + v * W)));
  }

  // For each row r of i .. end-1: epilogue(r, sum_d rows[r][d] * packed[d][lanes])
  template <class Epilogue>
  ATTN_INLINE void multiply_rows(const A* rows, int64_t ld, const A* packed, int depth, int i,
                                 int end, const Epilogue& epilogue) {
    for_row_tiles<kRows>(i, end, [&]<int R>(int first) ATTN_INLINE_LAMBDA {
      Vec<A> sums[R][NV];
      multiply_tile<A, R, NV>(rows + first * ld, ld, 1, packed, kTile, depth, sums);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) epilogue(first + r, sums[r]);
    });
  }

  // s -> p: the score terms, then exp(s - lse), 0 where masked. A bias of -inf leaves the row map.
  void finish_weights(int t, int64_t first_row, int i, int end) {
    const A cap = static_cast<A>(p_.score.softcap);
    const int64_t j0 = keys_.begin + t * kTile;
    const int count = static_cast<int>(min64(kTile, keys_.end - j0));
    for (int r = i; r < end; ++r)
      for (int v = 0; v < NV; ++v) {
        A* at = weights_ + r * kTile + v * W;
        Vec<A> s = load(at) * set1(scale_);
        if (cap != 0) {
          const Vec<A> t1 = tanh(s / set1(cap));
          store(cap_ + r * kTile + v * W, softcap_derivative(t1, set1(A(1))));
          s = softcap_value(t1, set1(cap));
        }
        const int shift = t * kTile + v * W;
        if (p_.bias && count > v * W) {
          const Vec<A> bias = load_elements<A>(p_.bias.at(b_, h_, first_row + r, j0 + v * W),
                                               p_.bias.dtype, p_.bias.stride[3], count - v * W);
          const IntVec<A> masked = bias == set1(-std::numeric_limits<A>::infinity());
          for (int l = 0; l < W; ++l) maps_[r] &= ~(uint64_t(masked[l] != 0) << (shift + l));
          s += bias;
        }
        if (p_.alibi_slopes) s += alibi_value(set1(slope_), distance(first_row + r, j0 + v * W));
        store(at, select<A>(seen(t, r, v), weight(s, r), Vec<A>{}));
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
    for (int r = i; r < end; ++r)
      for (int v = 0; v < NV; ++v) {
        const int64_t at = r * kTile + v * W;
        const int shift = t * kTile + v * W;
        Vec<A> weight = load(weights_ + at), dp = load(ds_ + at);
        if (kept_) {
          const IntVec<A> kept = lanes_from_bits<A>(static_cast<Word<A>>(kept_[r] >> shift));
          dp = select<A>(kept, dp * keep, Vec<A>{});
          store(weights_ + at, select<A>(kept, weight * keep, Vec<A>{}));
        }
        Vec<A> ds = select<A>(seen(t, r, v), weight * (dp - set1(delta_[r])), Vec<A>{});
        if (p_.dbias) add_bias(first_row + r, j0 + v * W, ds);
        if (p_.alibi_partial)
          dslope = fma(ds, alibi_derivative(distance(first_row + r, j0 + v * W)), dslope);
        if (cap_) ds *= load(cap_ + at);
        store(ds_ + at, ds * scale);
      }
    dslope_ += static_cast<double>(sum_lanes<A>(dslope));
  }

  // dbias += ds of W keys, into the slot of this task; summed over the keys where the bias is
  // broadcast over them.
  void add_bias(int64_t i, int64_t j, Vec<A> ds) {
    const int64_t* size = p_.bias_size;
    const GradPlan& plan = p_.plan;
    int64_t slot = 0;
    if (size[0] == 1 && !plan.merge_batch) slot = b_;
    if (size[1] == 1 && !plan.merge_heads) slot = slot * p_.Hkv + hkv_;
    if (size[3] == 1) slot = slot * plan.chunks + chunk_;
    const int64_t bi = size[0] == 1 ? 0 : b_, hi = size[1] == 1 ? 0 : h_, qi = size[2] == 1 ? 0 : i;
    A* row = static_cast<A*>(p_.dbias_partial) +
             (((slot * size[0] + bi) * size[1] + hi) * size[2] + qi) * size[3];
    const int64_t count = min64(W, keys_.end - j);
    if (size[3] == 1)
      *row += sum_lanes<A>(ds);
    else if (count == W)
      store(row + j, load(row + j) + ds);
    else
      for (int64_t l = 0; l < count; ++l) row[j + l] += ds[l];
  }

  // dv += p^T dout, dk += ds^T q, dq += ds k
  void accumulate(int t, int64_t first_row, int a, int e, A* dq_head) {
    const A *weights = weights_ + a * kTile, *ds = ds_ + a * kTile;
    if (p_.dv)
      accumulate_lanes<A, NV>(weights, kTile, dout_ + a * ldo_, ldo_, e - a, Dv_, nullptr,
                              dvt_ + t * kTile * Dv_);
    if (p_.dk)
      accumulate_lanes<A, NV>(ds, kTile, q_ + a * ldq_, ldq_, e - a, D_, nullptr,
                              dkt_ + t * kTile * D_);
    if (p_.dq) {
      const int n = static_cast<int>(min64(kTile, keys_.end - keys_.begin - t * kTile));
      accumulate_rows<A>(ds, kTile, k_ + t * kTile * ldk_, ldk_, e - a, n,
                         static_cast<int>(p_.plan.dq_width),
                         dq_head + (first_row + a - dq_.rows.begin) * dq_.width, dq_.width);
    }
  }

  // The same, pair by pair: 0 * NaN of a masked pair must not reach a gradient.
  void accumulate_seen(int t, int64_t first_row, int a, int e, A* dq_head) {
    for (int r = a; r < e; ++r)
      for (uint64_t map = maps_[r] & (tile_bits(t) << (t * kTile)); map; map &= map - 1) {
        const int j = __builtin_ctzll(map) - t * kTile;
        const A weight = weights_[r * kTile + j], ds = ds_[r * kTile + j];
        A *dkt = dkt_ + t * kTile * D_ + j, *dvt = dvt_ + t * kTile * Dv_ + j;
        for (int d = 0; d < Dv_; ++d) dvt[d * kTile] += weight * dout_[r * ldo_ + d];
        for (int d = 0; d < D_; ++d) dkt[d * kTile] += ds * q_[r * ldq_ + d];
        if (!p_.dq) continue;
        A* dq = dq_head + (first_row + r - dq_.rows.begin) * dq_.width;
        for (int d = 0; d < D_; ++d) dq[d] += ds * k_[(t * kTile + j) * ldk_ + d];
      }
  }
};
