// Attention maps, after the forward pass has left lse: the weights p = exp(s - lse), a block of
// keys at a time, and what is made of them:
//   column sums sum_i p_ij,  entropies -sum_j p_ij log p_ij,  means over bins,  chosen rows
// Keys are the lanes, as in the backward pass: scores[row][key]. A work item is a chunk of key
// blocks of one (b, key head), all queries that see them; it owns its columns, and leaves partial
// sums of the entropies and of the bins it shares with others. Included by kernels.inl.

constexpr int kMapRows = 64;               // that a visit of a key block takes together
constexpr int64_t kMapBlocksPerChunk = 8;  // at least

inline Bins query_bins(const AttentionMapParams& p) { return {p.Lq, max64(1, p.query_bins)}; }
inline Bins key_bins(const AttentionMapParams& p) { return {p.Lk, max64(1, p.key_bins)}; }

inline int64_t attention_map_chunks(const AttentionMapParams& p) {
  const int64_t units = max64(1, p.B * p.Hkv), blocks = (p.Lk + kKeyBlock - 1) / kKeyBlock;
  return max64(1, min64((kTasksWanted + units - 1) / units, blocks / kMapBlocksPerChunk));
}
inline Range map_chunk_keys(const AttentionMapParams& p, int64_t chunk) {
  const int64_t blocks = (p.Lk + kKeyBlock - 1) / kKeyBlock;
  return {blocks * chunk / p.chunks * kKeyBlock,
          min64(p.Lk, blocks * (chunk + 1) / p.chunks * kKeyBlock)};
}
inline double* map_bin_sums(const AttentionMapParams& p, int64_t b, int64_t h, int64_t chunk,
                            int64_t key_bin) {
  const int64_t rows = p.key_bins + p.chunks - 1;
  return p.bin_partial + ((b * p.Hq + h) * rows + key_bin + chunk) * p.query_bins;
}

// Before it: lse as the weights take it. A work item is a block of rows of one (b, h).
template <class E>
struct AttentionMapRows {
  using Params = AttentionMapParams;
  using A = Compute<E>;

  static int64_t blocks(const Params& p) { return (p.Lq + kStatisticsRows - 1) / kStatisticsRows; }
  static Plan plan(const Params& p) {
    return {p.B * p.Hq * blocks(p), AttentionForward<E>::plan(p).scratch_bytes};
  }
  static void run(const Params& p, int64_t item, void* scratch) {
    const int64_t h = item / blocks(p) % p.Hq, b = item / blocks(p) / p.Hq;
    const int64_t first = item % blocks(p) * kStatisticsRows;
    A* lse = static_cast<A*>(p.row_lse) + (b * p.Hq + h) * p.Lq;
    A* low = lse + p.B * p.Hq * p.Lq;
    for (int64_t i = first; i < min64(p.Lq, first + kStatisticsRows); ++i)
      split_lse<E>(p, b, h, i, scratch, lse + i, low + i);
  }
};

template <class E>
class AttentionMap {
 public:
  using Params = AttentionMapParams;
  using A = Compute<E>;
  static constexpr int W = kLanes<A>, NV = kKeyVectors, kTile = NV * W;

  static Plan plan(const Params& p) {
    Arena arena(nullptr);
    AttentionMap measure(p, arena);
    return {p.B * p.Hkv * p.chunks, arena.used()};
  }
  static void run(const Params& p, int64_t item, void* scratch) {
    Arena arena(scratch);
    AttentionMap(p, arena).run_item(item);
  }

 private:
  const Params& p_;
  const bool plain_;  // nothing between the product and exp but the scale
  const int D_;
  int64_t b_ = 0, hkv_ = 0, h_ = 0, chunk_ = 0;
  Range keys_{0, 0};
  Lane<E>* kt_;         // [tiles][steps of D][kTile]
  Scalar<E>* q_block_;  // [kMapRows][D], where queries can't be read as they lie
  A* weights_;          // [kMapRows][kKeyBlock], scores at first
  A* entropy_;          // [kMapRows][W], to be added up
  A* sums_;             // [kKeyBlock], over the rows of a visit
  double* columns_;     // [kKeyBlock]
  uint64_t* maps_;      // [kMapRows]
  const A *lse_ = nullptr, *lse_low_ = nullptr;
  A slope_ = 0;

  AttentionMap(const Params& p, Arena& arena)
      : p_(p), plain_(has_plain_scores(p)), D_(static_cast<int>(p.D)) {
    kt_ = arena.take<Lane<E>>(kKeyBlock * steps<E>(D_));
    q_block_ = has_natural_rows<E>(p.query, D_)
                   ? nullptr
                   : arena.take<Scalar<E>>(kMapRows * steps<E>(D_) * kPair<E>);
    weights_ = arena.take<A>(kMapRows * kKeyBlock);
    entropy_ = arena.take<A>(kMapRows * W);
    sums_ = arena.take<A>(kKeyBlock);
    columns_ = arena.take<double>(kKeyBlock);
    maps_ = arena.take<uint64_t>(kMapRows);
  }

  void run_item(int64_t item) {
    chunk_ = item % p_.chunks;
    hkv_ = item / p_.chunks % p_.Hkv;
    b_ = item / p_.chunks / p_.Hkv;
    const Range keys = map_chunk_keys(p_, chunk_);
    for (h_ = hkv_ * p_.group(); h_ < (hkv_ + 1) * p_.group(); ++h_) {
      memset(entropy_sums(), 0, sizeof(double) * p_.Lq);
      if (p_.query_bins == 0 || keys.empty()) continue;
      const int64_t first = key_bins(p_).of(keys.begin), last = key_bins(p_).of(keys.end - 1);
      memset(map_bin_sums(p_, b_, h_, chunk_, first), 0,
             sizeof(double) * p_.query_bins * (last - first + 1));
    }
    for (int64_t j = keys.begin; j < keys.end; j += kKeyBlock)
      run_block({j, min64(j + kKeyBlock, keys.end)});
  }

  double* entropy_sums() const {
    return p_.entropy_partial + ((b_ * p_.Hq + h_) * p_.chunks + chunk_) * p_.Lq;
  }

  void run_block(Range keys) {
    keys_ = keys;
    const Range rows = p_.mask.query_range(b_, keys);
    if (!rows.empty()) read_keys();
    for (h_ = hkv_ * p_.group(); h_ < (hkv_ + 1) * p_.group(); ++h_) {
      if (p_.alibi_slopes)
        slope_ = static_cast<A>(load_scalar(p_.alibi_slopes.at(b_, h_, 0), p_.alibi_slopes.dtype));
      memset(columns_, 0, sizeof(double) * kKeyBlock);
      for (int64_t i = rows.begin; i < rows.end;) {
        const Bins bins = query_bins(p_);
        const Range bin{i, min64(rows.end, bins.begin(bins.of(i) + 1))};
        const Range run = p_.mask.next_rows(b_, h_, keys.begin, bin, kMapRows);
        if (!run.empty()) run_rows(run);
        i = run.empty() ? bin.end : run.end;
      }
      for (int64_t j = keys.begin; j < keys.end; ++j)
        store_scalar(p_.column_sums.at(b_, h_, j), p_.column_sums.dtype, columns_[j - keys.begin]);
    }
  }

  // Lanes behind the last key repeat it.
  void read_keys() {
    const char* rows[kKeyBlock];
    for (int j = 0; j < kKeyBlock; ++j)
      rows[j] = p_.key.at(b_, hkv_, min64(keys_.begin + j, keys_.end - 1));
    for (int t = 0; t * kTile < kKeyBlock; ++t)
      pack_operands<E>(rows + t * kTile, kTile, p_.key, D_, false, kt_ + t * kTile * steps<E>(D_),
                       kTile);
  }

  Rows<E> read_queries(Range rows) const {
    const View& query = p_.query;
    const char* at = query.at(b_, h_, rows.begin);
    if (!q_block_) return {reinterpret_cast<const Scalar<E>*>(at), query.stride[2]};
    const int64_t ld = steps<E>(D_) * kPair<E>;
    copy_operands<E>(at, query.stride[2] * size_of(query.dtype), query,
                     static_cast<int>(rows.end - rows.begin), D_, q_block_, ld);
    return {q_block_, ld};
  }

  // Rows of one head and one query bin.
  void run_rows(Range rows) {
    if (!map_rows(rows)) return;
    const int n = static_cast<int>(rows.end - rows.begin);
    lse_ = static_cast<const A*>(p_.row_lse) + (b_ * p_.Hq + h_) * p_.Lq + rows.begin;
    lse_low_ = lse_ + p_.B * p_.Hq * p_.Lq;
    multiply(read_queries(rows), n);
    memset(entropy_, 0, sizeof(A) * n * W);
    for (int v = 0; v < kKeyBlock / W; ++v) weigh(rows, v);
    write_weights(rows);
    add_entropies(rows);
    add_columns(rows.begin);
  }

  bool map_rows(Range rows) {
    const uint64_t every = bits_between(0, keys_.end - keys_.begin);
    const bool full = p_.mask.covers(b_, {h_, h_ + 1}, rows, keys_);
    RowMaps row_maps(p_.mask, b_, keys_.begin);
    uint64_t any = 0;
    for (int64_t i = rows.begin; i < rows.end; ++i)
      any |= maps_[i - rows.begin] = full ? every : row_maps(h_, i) & every;
    return any != 0;
  }

  void multiply(Rows<E> q, int n) {
    for (int t = 0; t * kTile < kKeyBlock; ++t) {
      const Lane<E>* kt = kt_ + t * kTile * steps<E>(D_);
      for_row_tiles<kRows>(0, n, [&]<int R>(int r) ATTN_INLINE_LAMBDA {
        Vec<A> s[R][NV];
        multiply_tile<E, R, NV>(q.data + r * q.ld, q.ld, kPair<E>, kt, kTile, steps<E>(D_), s);
#pragma GCC unroll 16
        for (int x = 0; x < R; ++x)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v)
            store(weights_ + (r + x) * kKeyBlock + t * kTile + v * W, s[x][v]);
      });
    }
  }

  // Products to weights, for the keys of vector v; their sums, and what they add to the entropies.
  void weigh(Range rows, int v) {
    const Vec<A> scale = set1(static_cast<A>(p_.score.scale)), log2e = set1(static_cast<A>(kLog2e));
    const int n = static_cast<int>(rows.end - rows.begin);
    Vec<A> sum{};
    for (int r = 0; r < n; ++r) {
      A* at = weights_ + r * kKeyBlock + v * W;
      // Rounded before the subtraction, as it was for lse.
      Vec<A> s = load(at) * scale;
      if (!plain_) s = adjust(s, rows.begin + r, v);
      s = (s - set1(lse_[r])) - set1(lse_low_[r]);
      const IntVec<A> seen = lanes_from_bits<A>(static_cast<Word<A>>(maps_[r] >> (v * W)));
      const Vec<A> p = select<A>(seen, exp2(s * log2e), Vec<A>{});
      const Vec<A> term = select<A>(p == Vec<A>{}, Vec<A>{}, p * s);
      store(at, p);
      store(entropy_ + r * W, load(entropy_ + r * W) - term);
      sum += p;
    }
    store(sums_ + v * W, sum);
  }

  // softcap(s) + bias - slope * |i' - j|
  Vec<A> adjust(Vec<A> s, int64_t i, int v) const {
    const A cap = static_cast<A>(p_.score.softcap);
    const int64_t j = keys_.begin + v * W;
    if (cap != 0) s = softcap_value(tanh(s / set1(cap)), set1(cap));
    if (p_.bias && j < keys_.end) {
      const Vec<A> bias = load_elements<A>(p_.bias.at(b_, h_, i, j), p_.bias.dtype,
                                           p_.bias.stride[3], static_cast<int>(keys_.end - j));
      const Vec<A> minus_infinity = set1(-std::numeric_limits<A>::infinity());
      s = select<A>(bias == minus_infinity, minus_infinity, s + bias);
    }
    if (p_.alibi_slopes) {
      const Vec<A> distance =
          abs<A>(set1(static_cast<A>(i + p_.score.alibi_offset - j)) - iota<A>());
      s += alibi_value(set1(slope_), distance);
    }
    return s;
  }

  void write_weights(Range rows) const {
    const MapRow* end = p_.rows + p_.row_count;
    for (const MapRow* chosen = first_chosen(rows.begin); chosen != end && chosen->row < rows.end;
         ++chosen) {
      const A* row = weights_ + (chosen->row - rows.begin) * kKeyBlock;
      memcpy(p_.weights.at(b_, h_, chosen->place, keys_.begin), row,
             sizeof(A) * (keys_.end - keys_.begin));
    }
  }
  const MapRow* first_chosen(int64_t row) const {
    const MapRow* first = p_.rows;
    for (int64_t n = p_.row_count; n > 0;) {
      const int64_t half = n / 2;
      if (first[half].row < row)
        first += half + 1, n -= half + 1;
      else
        n = half;
    }
    return first;
  }

  void add_entropies(Range rows) {
    const int n = static_cast<int>(rows.end - rows.begin);
    double* entropy = entropy_sums() + rows.begin;
    for (int r = 0; r < n; r += W) {
      Vec<A> x[W];
      for (int i = 0; i < W; ++i) x[i] = r + i < n ? load(entropy_ + (r + i) * W) : Vec<A>{};
      transpose<A>(x);
      for (int i = 1; i < W; ++i) x[0] += x[i];
      for (int i = 0; i < W && r + i < n; ++i) entropy[r + i] += static_cast<double>(x[0][i]);
    }
  }

  void add_columns(int64_t row) {
    const int n = static_cast<int>(keys_.end - keys_.begin);
    for (int j = 0; j < n; ++j) columns_[j] += static_cast<double>(sums_[j]);
    if (p_.query_bins == 0) return;
    const Bins bins = key_bins(p_);
    const int64_t query_bin = query_bins(p_).of(row);
    for (int64_t j = keys_.begin; j < keys_.end;) {
      const int64_t bin = bins.of(j), end = min64(keys_.end, bins.begin(bin + 1));
      double sum = 0;
      for (; j < end; ++j) sum += static_cast<double>(sums_[j - keys_.begin]);
      map_bin_sums(p_, b_, h_, chunk_, bin)[query_bin] += sum;
    }
  }
};

// After it: the partial sums, added in the order of the chunks. A work item is one (b, h).
struct AttentionMapReduce {
  using Params = AttentionMapParams;

  static Plan plan(const Params& p) { return {p.B * p.Hq, 0}; }
  static void run(const Params& p, int64_t item, void*) {
    const int64_t h = item % p.Hq, b = item / p.Hq;
    const double* partial = p.entropy_partial + item * p.chunks * p.Lq;
    for (int64_t i = 0; i < p.Lq; ++i) {
      double sum = 0;
      for (int64_t c = 0; c < p.chunks; ++c) sum += partial[c * p.Lq + i];
      store_scalar(p.entropy.at(b, h, i), p.entropy.dtype, sum);
    }
    for (int64_t k = 0; k < p.key_bins; ++k) reduce_bin(p, b, h, k);
  }

 private:
  static void reduce_bin(const Params& p, int64_t b, int64_t h, int64_t k) {
    const Bins queries = query_bins(p), keys = key_bins(p);
    const Range bin{keys.begin(k), keys.begin(k + 1)};
    for (int64_t q = 0; q < p.query_bins; ++q) {
      double sum = 0;
      for (int64_t c = 0; c < p.chunks; ++c) {
        const Range chunk = map_chunk_keys(p, c);
        if (chunk.begin < bin.end && bin.begin < chunk.end) sum += map_bin_sums(p, b, h, c, k)[q];
      }
      const int64_t pairs = (queries.begin(q + 1) - queries.begin(q)) * (bin.end - bin.begin);
      store_scalar(p.binned.at(b, h, q, k), p.binned.dtype, sum / static_cast<double>(pairs));
    }
  }
};
