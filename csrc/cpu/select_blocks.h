// Selection, one work item: some rows of queries of one list of (b, head). Every row is computed by
// itself, whatever rows stand beside it: one query alone selects what it selects among others.
// Included by kernels.inl.

template <class A>
class SelectBlocks {
 public:
  using Params = SelectParams;
  static constexpr int W = kLanes<A>, kRowsPerItem = 24;
  using Rank = typename std::make_signed<Word<A>>::type;

  static Plan plan(const SelectParams& p) {
    Arena arena(nullptr);
    SelectBlocks measure(p, arena);
    return {p.B * p.heads() * measure.items_, arena.used()};
  }
  static void run(const SelectParams& p, int64_t item, void* scratch) {
    Arena arena(scratch);
    SelectBlocks(p, arena).run_item(item);
  }

 private:
  const SelectParams& p_;
  const int64_t items_;  // of one list
  const int ld_;
  A *queries_, *row_, *scores_, *block_scores_;  // [rows][D], [D], [rows][columns], [rows][blocks]
  Rank* ranks_;                                  // [blocks], up to a whole vector
  int32_t* chosen_;                              // [top_k + 1]

  SelectBlocks(const SelectParams& p, Arena& arena)
      : p_(p),
        items_((p.rows() + kRowsPerItem - 1) / kRowsPerItem),
        ld_(static_cast<int>((p.D + W - 1) / W * W)) {
    queries_ = arena.take<A>(kRowsPerItem * ld_);
    row_ = arena.take<A>(ld_);
    scores_ = arena.take<A>(kRowsPerItem * p.columns);
    block_scores_ = p.compression ? arena.take<A>(kRowsPerItem * p.blocks()) : scores_;
    ranks_ = arena.take<Rank>(p.blocks() + W);
    chosen_ = arena.take<int32_t>(p.top_k + 1);
  }

  void run_item(int64_t item) {
    const int64_t list = item / items_, b = list / p_.heads(), h = list % p_.heads();
    const int64_t first = item % items_ * kRowsPerItem;
    const int count = static_cast<int>(min64(kRowsPerItem, p_.rows() - first));
    const Range heads =
        p_.share_heads ? Range{h * p_.group(), (h + 1) * p_.group()} : Range{h, h + 1};
    if (p_.compression)
      score_by_probability(b, heads, first, count);
    else
      score_by_mean(b, heads, first, count);
    const int64_t ld = p_.compression ? p_.blocks() : p_.columns;
    for (int r = 0; r < count; ++r)
      choose(b, heads.begin / p_.group(), first + r, block_scores_ + r * ld,
             p_.indices + ((list * p_.rows()) + first + r) * p_.top_k);
  }

  // The position of a row's first query.
  int64_t position(int64_t row) const { return row * p_.query_block + p_.positions - p_.Lq; }

  // Blocks that a row may select.
  int64_t visible_blocks(int64_t row) const {
    if (!p_.causal) return p_.blocks();
    const int64_t last = position(row);
    return last < 0 ? 0 : last / p_.block + 1;
  }

  // sum over the heads of q . (mean of the block's keys): the scores of summed queries
  void score_by_mean(int64_t b, Range heads, int64_t first, int count) {
    for (int r = 0; r < count; ++r) {
      A* sum = queries_ + r * ld_;
      memset(sum, 0, sizeof(A) * ld_);
      const int64_t begin = (first + r) * p_.query_block;
      for (int64_t h = heads.begin; h < heads.end; ++h)
        for (int64_t i = begin; i < min64(begin + p_.query_block, p_.Lq); ++i) {
          read_query(b, h, i, row_);
          for (int c = 0; c < ld_; c += W) store(sum + c, load(sum + c) + load(row_ + c));
        }
    }
    multiply(b, heads.begin, count, visible_blocks(first + count - 1));
  }

  void read_query(int64_t b, int64_t h, int64_t i, A* to) const {
    memset(to + ld_ - W, 0, sizeof(A) * W);
    copy_rows<A>(p_.query.at(b, h, i), 0, p_.query.dtype, p_.query.stride[3], 1,
                 static_cast<int>(p_.D), to, ld_);
  }

  // scores[r][c] = queries[r] . scored_keys[c] for at least the first `needed` columns
  void multiply(int64_t b, int64_t h, int count, int64_t needed) {
    const int64_t columns = min64(p_.columns, (needed + W - 1) / W * W);
    memset(scores_, 0, sizeof(A) * count * p_.columns);
    const A* keys =
        static_cast<const A*>(p_.scored_keys) + (b * p_.Hkv + h / p_.group()) * p_.D * p_.columns;
    accumulate_rows<A>(queries_, ld_, keys, p_.columns, count, static_cast<int>(p_.D),
                       static_cast<int>(columns), scores_, p_.columns);
  }

  void score_by_probability(int64_t b, Range heads, int64_t first, int count) {
    memset(block_scores_, 0, sizeof(A) * count * p_.blocks());
    const auto seen = [&](int r) {
      return min64(p_.keys, p_.causal ? p_.compression.seen_from(position(first + r)) : p_.keys);
    };
    for (int64_t h = heads.begin; h < heads.end; ++h) {
      for (int r = 0; r < count; ++r) read_query(b, h, first + r, queries_ + r * ld_);
      multiply(b, h, count, seen(count - 1));
      for (int r = 0; r < count; ++r) {
        softmax(b, h / p_.group(), scores_ + r * p_.columns, seen(r));
        add_to_blocks(scores_ + r * p_.columns, seen(r), block_scores_ + r * p_.blocks());
      }
    }
  }

  // The first n scores become probabilities, 0 where no key counts.
  void softmax(int64_t b, int64_t hkv, A* s, int64_t n) const {
    const uint8_t* keep = p_.scored_keep + (b * p_.Hkv + hkv) * p_.columns;
    const A factor = static_cast<A>(p_.scale * kLog2e);
    constexpr A kMinusInfinity = -std::numeric_limits<A>::infinity();
    A top = kMinusInfinity;
    for (int64_t c = 0; c < n; ++c) {
      s[c] = keep[c] ? s[c] * factor : kMinusInfinity;
      top = s[c] > top ? s[c] : top;
    }
    if (top == kMinusInfinity) top = 0;
    Vec<A> sum{};
    for (int64_t c = n; c < (n + W - 1) / W * W; ++c) s[c] = kMinusInfinity;
    for (int64_t c = 0; c < n; c += W) {
      const Vec<A> x = exp2(load(s + c) - set1(top));
      store(s + c, x);
      sum += x;
    }
    const A total = sum_lanes<A>(sum);
    const Vec<A> scale = set1(total > 0 ? A(1) / total : A(0));
    for (int64_t c = 0; c < n; c += W) store(s + c, load(s + c) * scale);
  }

  // Each probability goes to the blocks of all strides that its key covers.
  void add_to_blocks(const A* probability, int64_t n, A* to) const {
    const int64_t strides = p_.block / p_.compression.stride,
                  covered = p_.compression.length / p_.compression.stride;
    for (int64_t block = 0; block < p_.blocks(); ++block) {
      const int64_t begin = block * strides;
      if (begin >= n + covered - 1) break;
      A sum = 0;
      for (int64_t shift = 0; shift < covered; ++shift)
        for (int64_t c = max64(0, begin - shift); c < min64(n, begin - shift + strides); ++c)
          sum += probability[c];
      to[block] += sum;
    }
  }

  static constexpr Rank kLowest = std::numeric_limits<Rank>::min(),
                        kHighest = std::numeric_limits<Rank>::max();

  // The fixed blocks and the best of the others, ascending, then -1. Of equal ones the first is
  // chosen; NaN counts as -inf.
  void choose(int64_t b, int64_t hkv, int64_t row, const A* scores, int32_t* out) {
    const int64_t visible = visible_blocks(row), possible = rank(b, hkv, row, scores, visible);
    Rank last = kLowest + 1;  // of those chosen
    int64_t equal = visible;  // how many of this rank are
    if (possible > p_.top_k) {
      last = rank_of_last(visible);
      equal = p_.top_k - (last == kHighest ? 0 : count_from(visible, last + 1));
    }
    int64_t count = 0;
    for (int64_t n = 0; n < visible; ++n) {
      const bool is_last = ranks_[n] == last, taken = is_last ? equal > 0 : ranks_[n] > last;
      equal -= is_last;
      chosen_[count] = static_cast<int32_t>(n);
      count += taken;
    }
    for (int64_t n = 0; n < p_.top_k; ++n) out[n] = n < count ? chosen_[n] : -1;
  }

  // Ranks are integers in the order of the scores: the highest for fixed blocks, the lowest for
  // those that may not be chosen. Returns how many may.
  int64_t rank(int64_t b, int64_t hkv, int64_t row, const A* scores, int64_t visible) {
    const uint8_t* keep =
        p_.compression ? nullptr : p_.scored_keep + (b * p_.Hkv + hkv) * p_.columns;
    int64_t possible = 0;
    for (int64_t n = 0; n < visible; ++n) {
      const A score = scores[n] != scores[n] ? -std::numeric_limits<A>::infinity()
                                             : scores[n] + A(0);  // there is one 0
      Rank bits;
      memcpy(&bits, &score, sizeof(bits));
      const bool may = !keep || keep[n];
      ranks_[n] = may ? (bits < 0 ? bits ^ kHighest : bits) : kLowest;
      possible += may;
    }
    const auto fix = [&](Range blocks) {
      for (int64_t n = blocks.begin; n < blocks.end; ++n) {
        possible += ranks_[n] == kLowest;
        ranks_[n] = kHighest;
      }
    };
    const int64_t at = position(row), own = at < 0 ? -1 : at / p_.block;
    const int64_t initial = min64(p_.initial, visible);
    fix({0, initial});
    fix({max64(initial, own - p_.local + 1), min64(own + 1, visible)});
    for (int64_t n = visible; n % W != 0; ++n) ranks_[n] = kLowest;
    return possible;
  }

  // Of more than top_k blocks that may be chosen, the rank of the last one chosen.
  Rank rank_of_last(int64_t visible) const {
    Rank low = kLowest + 1, high = kHighest;  // as many or more from here on; from here on fewer
    if (count_from(visible, high) >= p_.top_k) return high;
    while (low + 1 < high) {
      const Rank middle = (low & high) + ((low ^ high) >> 1);
      const int64_t count = count_from(visible, middle);
      (count < p_.top_k ? high : low) = middle;
      if (count == p_.top_k) break;
    }
    return low;
  }

  int64_t count_from(int64_t visible, Rank lowest) const {
    IntVec<A> sum{};
    for (int64_t n = 0; n < visible; n += W) {
      IntVec<A> ranks;
      memcpy(&ranks, ranks_ + n, sizeof(ranks));
      sum -= ranks >= set1_int<A>(static_cast<Word<A>>(lowest));
    }
    Rank total = 0;
    for (int l = 0; l < W; ++l) total += sum[l];
    return total;
  }
};
