// The query side of one work item of the backward pass: query and grad_out of the heads of a group,
// as products along their columns and along the rows take them. What can't be used where it lies is
// copied: once for all key blocks of the item, or, where that would take much memory, chunk by
// chunk for each of them. Included by kernels.inl.

template <class E>
struct QueryRows {
  Rows<E> q, dout;            // for products along the columns
  Rows<E> q_down, dout_down;  // for products along the rows: interleaved where those take pairs
};

template <class E>
class QuerySide {
 public:
  // chunk: rows of one head that are read together where not all are.
  QuerySide(const AttentionGradParams& p, int chunk, Arena& arena) : p_(p) {
    constexpr int64_t kMostBytes = int64_t{8} << 20;
    const int64_t row_bytes = int64_t{2 * sizeof(Scalar<E>)} * (p.D + p.Dv);
    whole_ = p.group() * p.plan.reach_rows * row_bytes <= kMostBytes;
    rows_ = steps<E>(whole_ ? p.plan.reach_rows : chunk) * kPair<E>;
    const int64_t heads = whole_ ? p.group() : 1;
    heads_ = arena.take<QueryRows<E>>(heads);
    q_ = copies(p.query, p.D, heads, arena);
    dout_ = copies(p.grad_out, p.Dv, heads, arena);
  }

  // All that an item needs is read at once.
  bool whole() const { return whole_; }

  void read(int64_t b, Range heads, Range reach) {
    reach_ = reach;
    for (int64_t h = heads.begin; h < heads.end; ++h) {
      const int64_t g = h - heads.begin;
      read_head(p_.query, p_.D, q_, b, h, g, heads_[g].q, heads_[g].q_down);
      read_head(p_.grad_out, p_.Dv, dout_, b, h, g, heads_[g].dout, heads_[g].dout_down);
    }
  }

  // From row i of the g-th head read on. Pairs begin at even rows.
  QueryRows<E> at(int64_t g, int64_t i) const {
    const int64_t skipped = i - reach_.begin;
    QueryRows<E> rows = heads_[g];
    for (Rows<E>* r : {&rows.q, &rows.dout, &rows.q_down, &rows.dout_down})
      r->data += skipped * r->ld;
    return rows;
  }
  Range reach() const { return reach_; }

 private:
  struct Copies {
    Scalar<E>*natural = nullptr, *down = nullptr;  // [heads][rows][columns, even in `natural`]
  };

  const AttentionGradParams& p_;
  Range reach_{0, 0};
  QueryRows<E>* heads_;
  Copies q_, dout_;
  bool whole_;
  int64_t rows_;

  Copies copies(const View& view, int64_t columns, int64_t heads, Arena& arena) const {
    Copies c;
    const int64_t all = heads * rows_;
    if (!has_reusable_rows<E>(view, columns))
      c.natural = arena.take<Scalar<E>>(all * steps<E>(columns) * kPair<E>);
    if (kPair<E> > 1) c.down = arena.take<Scalar<E>>(all * columns);
    return c;
  }

  void read_head(const View& view, int64_t columns, Copies copies, int64_t b, int64_t h, int64_t g,
                 Rows<E>& natural, Rows<E>& down) const {
    const int n = static_cast<int>(reach_.end - reach_.begin);
    natural = {reinterpret_cast<const Scalar<E>*>(view.at(b, h, reach_.begin)), view.stride[2]};
    if (copies.natural) {
      const int64_t ld = steps<E>(columns) * kPair<E>;
      Scalar<E>* copy = copies.natural + g * rows_ * ld;
      copy_operands<E>(view.at(b, h, reach_.begin), view.stride[2] * size_of(view.dtype), view, n,
                       columns, copy, ld);
      natural = {copy, ld};
    }
    down = natural;
    if constexpr (kPair<E> > 1) {
      Scalar<E>* copy = copies.down + g * rows_ * columns;
      interleave_rows(reinterpret_cast<const char*>(natural.data),
                      natural.ld * int64_t{sizeof(Scalar<E>)}, 1, n, columns, copy, columns);
      down = {copy, columns};
    }
  }
};

// The rows of a chunk, with what belongs to each.
template <class E>
struct ChunkRows {
  QueryRows<E> rows;
  const Compute<E>*lse = nullptr, *lse_low = nullptr, *delta = nullptr;
  const uint8_t* finite = nullptr;
  Compute<E>* dq = nullptr;
  int64_t ld_dq = 0;
};

// With a sparse table: copies of those rows of a chunk that see some key of a block, side by side.
// Not for pairs of bfloat16, which rows share.
template <class E>
class GatheredRows {
 public:
  using A = Compute<E>;

  // most: rows of a chunk; 0 where none are to be gathered.
  GatheredRows(const AttentionGradParams& p, int most, Arena& arena)
      : D_(p.D), Dv_(p.Dv), width_(p.dq ? p.plan.dq_width : 0), most_(kPair<E> == 1 ? most : 0) {
    q_ = arena.take<Scalar<E>>(most_ * D_);
    dout_ = arena.take<Scalar<E>>(most_ * Dv_);
    dq_ = arena.take<A>(most_ * width_);
    numbers_ = arena.take<A>(3 * most_);
    finite_ = arena.take<uint8_t>(most_);
    places_ = arena.take<int>(most_);
  }

  bool active() const { return most_ > 0; }

  // Takes those of the n rows that have a map, and puts them, and their maps, in the place of all;
  // returns how many they are.
  int gather(int n, uint64_t* maps, ChunkRows<E>& chunk) {
    source_ = chunk;
    count_ = 0;
    for (int r = 0; r < n; ++r)
      if (maps[r]) {
        maps[count_] = maps[r];
        add(r);
      }
    const Rows<E> q{q_, D_}, dout{dout_, Dv_};
    chunk = {
        {q, dout, q, dout}, numbers_, numbers_ + most_, numbers_ + 2 * most_, finite_, dq_, width_};
    return count_;
  }

  // dq of the rows, to where it came from.
  void write_dq() const {
    for (int n = 0; width_ && n < count_; ++n)
      memcpy(source_.dq + places_[n] * source_.ld_dq, dq_ + n * width_, sizeof(A) * width_);
  }

  // The place in its chunk of row r.
  int place_of(int r) const { return active() ? places_[r] : r; }

  // Where the sum that begins at row i ends, at most at e. Sums are cut at fixed places of a chunk:
  // the rows left out, which add zeros, change nothing.
  int end_of_sum(int i, int e, int rows) const {
    const int cut = (place_of(i) / rows + 1) * rows;
    if (!active()) return static_cast<int>(min64(e, cut));
    while (i < e && places_[i] < cut) ++i;
    return i;
  }

 private:
  const int64_t D_, Dv_, width_;
  const int most_;
  int count_ = 0;
  ChunkRows<E> source_;
  Scalar<E>*q_, *dout_;
  A *dq_, *numbers_;  // numbers: lse, its low part, delta
  uint8_t* finite_;
  int* places_;

  void add(int r) {
    const Rows<E>&q = source_.rows.q, &dout = source_.rows.dout;
    memcpy(q_ + count_ * D_, q.data + r * q.ld, sizeof(Scalar<E>) * D_);
    memcpy(dout_ + count_ * Dv_, dout.data + r * dout.ld, sizeof(Scalar<E>) * Dv_);
    if (width_) memcpy(dq_ + count_ * width_, source_.dq + r * source_.ld_dq, sizeof(A) * width_);
    numbers_[count_] = source_.lse[r];
    numbers_[most_ + count_] = source_.lse_low[r];
    numbers_[2 * most_ + count_] = source_.delta[r];
    finite_[count_] = source_.finite[r];
    places_[count_++] = r;
  }
};
