// Before the backward pass, per query row:
//   delta = sum_d dout * out - dlse,  dsink = -sum_i exp(sink - lse) * delta
// One work item is a block of rows of one (b, h). Included by kernels.inl.

constexpr int64_t kRowsAhead = 32;  // to prefetch

template <class E>
class AttentionBackwardRows {
 public:
  using Params = AttentionGradParams;
  using A = Compute<E>;

  static Plan plan(const Params& p) {
    Arena arena(nullptr);
    AttentionBackwardRows measure(p, arena);
    return {p.B * p.Hq * p.plan.row_blocks, arena.used()};
  }
  static void run(const Params& p, int64_t item, void* scratch) {
    Arena arena(scratch);
    AttentionBackwardRows(p, arena).run_item(item);
  }

 private:
  const Params& p_;
  int64_t b_ = 0, h_ = 0;
  A *dout_row_, *row_;
  char* forward_scratch_;

  AttentionBackwardRows(const Params& p, Arena& arena) : p_(p) {
    dout_row_ = arena.take<A>(p.Dv);
    row_ = arena.take<A>(max64(p.D, p.Dv));
    forward_scratch_ = arena.take<char>(AttentionForward<E>::plan(p).scratch_bytes);
  }

  void run_item(int64_t item) {
    const int64_t block = item % p_.plan.row_blocks;
    h_ = item / p_.plan.row_blocks % p_.Hq;
    b_ = item / p_.plan.row_blocks / p_.Hq;
    const double sink = p_.sinks ? load_scalar(p_.sinks.at(0, h_, 0), p_.sinks.dtype) : -INFINITY;
    double dsink = 0;
    const int64_t end = min64(p_.Lq, (block + 1) * kStatisticsRows);
    for (int64_t i = block * kStatisticsRows; i < end; ++i) {
      const Range ahead{min64(end, i + kRowsAhead), min64(end, i + kRowsAhead + 1)};
      prefetch_rows(p_.grad_out, b_, h_, ahead, p_.Dv);
      prefetch_rows(p_.query, b_, h_, ahead, p_.D);
      prefetch_rows(p_.out, b_, h_, ahead, p_.Dv);
      const int64_t at = (b_ * p_.Hq + h_) * p_.Lq + i;
      A* lse = static_cast<A*>(p_.row_lse) + at;
      A* lse_low = lse + p_.B * p_.Hq * p_.Lq;
      split_lse<E>(p_, b_, h_, i, forward_scratch_, lse, lse_low);
      const double delta = row_delta(i, &p_.row_finite[at]);
      static_cast<A*>(p_.row_delta)[at] = static_cast<A>(delta);
      if (sink != -INFINITY) dsink -= std::exp(sink - *lse - *lse_low) * delta;
    }
    if (p_.sink_partial) p_.sink_partial[item] = dsink;
  }

  // A non-finite dout that meets an output of 0, as that of an empty row is, counts as 0.
  double row_delta(int64_t i, uint8_t* finite) {
    const int Dv = static_cast<int>(p_.Dv), D = static_cast<int>(p_.D);
    const A* dout = read_row(p_.grad_out, i, Dv, dout_row_);
    const bool dout_finite = rows_finite(dout, Dv, 1, Dv);
    *finite = dout_finite && rows_finite(read_row(p_.query, i, D, row_), D, 1, D);
    const A* out = read_row(p_.out, i, Dv, row_);
    const double dlse = p_.grad_lse ? load_scalar(p_.grad_lse.at(b_, h_, i), p_.grad_lse.dtype) : 0;
    if (dout_finite) return static_cast<double>(dot_row(dout, out, Dv)) - dlse;
    double sum = 0;
    for (int d = 0; d < Dv; ++d)
      if (out[d] != 0) sum += static_cast<double>(dout[d]) * static_cast<double>(out[d]);
    return sum - dlse;
  }

  const A* read_row(const View& view, int64_t i, int columns, A* buffer) const {
    if (has_natural_rows<A>(view, columns)) return reinterpret_cast<const A*>(view.at(b_, h_, i));
    copy_rows<A>(view.at(b_, h_, i), 0, view.dtype, view.stride[3], 1, columns, buffer, columns);
    return buffer;
  }

  static A dot_row(const A* x, const A* y, int n) {
    Vec<A> sum{};
    int d = 0;
    for (; d + kLanes<A> <= n; d += kLanes<A>) sum = fma(load(x + d), load(y + d), sum);
    A tail = 0;
    for (; d < n; ++d) tail += x[d] * y[d];
    return sum_lanes<A>(sum) + tail;
  }
};
