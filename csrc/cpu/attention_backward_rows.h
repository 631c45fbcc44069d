// Before the backward pass, per query row:
//   delta = sum_d dout * out - dlse,  dsink = -sum_i exp(sink - lse) * delta
// One work item is a block of rows of one (b, h). Included by kernels.inl.

template <class A>
struct AttentionBackwardRows {
  using Params = AttentionGradParams;

  static Plan plan(const Params& p) { return {p.B * p.Hq * p.plan.row_blocks, 2 * row_bytes(p)}; }

  static int64_t row_bytes(const Params& p) {
    Arena arena(nullptr);
    arena.take<A>(max64(p.D, p.Dv) + kLanes<A>);
    return arena.used();
  }

  static void run(const Params& p, int64_t item, void* scratch) {
    const int64_t block = item % p.plan.row_blocks, h = item / p.plan.row_blocks % p.Hq;
    const int64_t b = item / p.plan.row_blocks / p.Hq;
    A* x = static_cast<A*>(scratch);
    A* y = reinterpret_cast<A*>(static_cast<char*>(scratch) + row_bytes(p));
    const bool natural = has_natural_scores(p);
    const double sink = p.sinks ? load_scalar(p.sinks.at(0, h, 0), p.sinks.dtype) : 0;
    double dsink = 0;
    const int64_t end = min64(p.Lq, (block + 1) * kStatisticsRows);
    for (int64_t i = block * kStatisticsRows; i < end; ++i) {
      const int64_t at = (b * p.Hq + h) * p.Lq + i;
      const double lse = load_scalar(p.lse.at(b, h, i), p.lse.dtype);
      const double dlse = p.grad_lse ? load_scalar(p.grad_lse.at(b, h, i), p.grad_lse.dtype) : 0;
      const A* dout = read_row(p.grad_out, b, h, i, p.Dv, x);
      const double delta = dot_row(dout, read_row(p.out, b, h, i, p.Dv, y), p.Dv) - dlse;
      bool finite = rows_finite(dout, p.Dv, 1, static_cast<int>(p.Dv));
      finite = finite && rows_finite(read_row(p.query, b, h, i, p.D, y), p.D, 1, static_cast<int>(p.D));
      // The weights exp(s - lse) of an empty row become exp(-inf) = 0.
      static_cast<A*>(p.row_lse)[at] = static_cast<A>(lse == -INFINITY ? INFINITY : natural ? lse : lse * kLog2e);
      static_cast<A*>(p.row_delta)[at] = static_cast<A>(delta);
      p.row_finite[at] = finite;
      if (p.sinks && sink != -INFINITY) dsink -= std::exp(sink - lse) * delta;
    }
    if (p.sink_partial) p.sink_partial[item] = dsink;
  }

 private:
  static const A* read_row(const View& view, int64_t b, int64_t h, int64_t i, int64_t columns, A* buffer) {
    if (has_natural_rows<A>(view)) return reinterpret_cast<const A*>(view.at(b, h, i));
    copy_rows<A>(view.at(b, h, i), 0, view.dtype, view.stride[3], 1, static_cast<int>(columns), buffer,
                 static_cast<int>(columns));
    return buffer;
  }
  static double dot_row(const A* x, const A* y, int64_t n) {
    Vec<A> sum{};
    int64_t d = 0;
    for (; d + kLanes<A> <= n; d += kLanes<A>) sum = fma(load(x + d), load(y + d), sum);
    A tail = 0;
    for (; d < n; ++d) tail += x[d] * y[d];
    return static_cast<double>(sum_lanes<A>(sum) + tail);
  }
};
