// After the backward pass: partial sums of the tasks are added in task order, whatever order they
// ran in. Work items are blocks of dq rows, then one item each for the bias, sinks and ALiBi
// slopes. Included by kernels.inl.

constexpr int64_t kReduceRows = 64;

template <class A>
struct AttentionBackwardReduce {
  using Params = AttentionGradParams;

  static int64_t dq_items(const Params& p) {
    const bool done = !p.dq || (p.plan.dq_direct && p.plan.chunks == 1);
    return done ? 0 : p.B * p.Hq * ((p.Lq + kReduceRows - 1) / kReduceRows);
  }
  static Plan plan(const Params& p) {
    return {dq_items(p) + 3, p.plan.dq_width * int64_t{sizeof(A)}};
  }

  static void run(const Params& p, int64_t item, void* scratch) {
    const int64_t small = item - dq_items(p);
    if (small < 0) reduce_dq(p, item, static_cast<A*>(scratch));
    if (small == 0 && p.dbias && p.dbias_partial != p.dbias.data) reduce_bias(p);
    if (small == 1 && p.dsinks) reduce_heads(p, p.dsinks, p.sink_partial, p.plan.row_blocks, false);
    if (small == 2 && p.dalibi_slopes)
      reduce_heads(p, p.dalibi_slopes, p.alibi_partial, p.plan.chunks, p.alibi_per_batch);
  }

 private:
  static void reduce_dq(const Params& p, int64_t item, A* sum) {
    constexpr int W = kLanes<A>;
    const int64_t blocks = (p.Lq + kReduceRows - 1) / kReduceRows;
    const int64_t h = item / blocks % p.Hq, b = item / blocks / p.Hq, g = h % p.group();
    const int64_t begin = item % blocks * kReduceRows, end = min64(p.Lq, begin + kReduceRows);
    for (int64_t i = begin; i < end; ++i) {
      memset(sum, 0, sizeof(A) * p.plan.dq_width);
      for (int64_t c = 0; c < p.plan.chunks; ++c) {
        const ChunkDq<A> dq = chunk_dq<A>(p, b, h / p.group(), c);
        if (!dq.holds(g, i)) continue;
        const A* row = dq.data + g * dq.head + (i - dq.rows.begin) * dq.width;
        for (int64_t d = 0; d < p.plan.dq_width; d += W)
          store(sum + d, load(sum + d) + load(row + d));
      }
      for (int64_t d = 0; d < p.D; d += W)
        store_elements<A>(p.dq.at(b, h, i, d), p.dq.dtype, p.dq.stride[3],
                          static_cast<int>(min64(W, p.D - d)), load(sum + d));
    }
  }

  static void reduce_bias(const Params& p) {
    const int64_t n = p.bias_size[0] * p.bias_size[1] * p.bias_size[2] * p.bias_size[3];
    const A* partial = static_cast<const A*>(p.dbias_partial);
    char* out = static_cast<char*>(p.dbias.data);
    for (int64_t e = 0; e < n; ++e) {
      A sum = 0;
      for (int64_t slot = 0; slot < p.plan.bias_slots; ++slot) sum += partial[slot * n + e];
      store_scalar(out + e * size_of(p.dbias.dtype), p.dbias.dtype, static_cast<double>(sum));
    }
  }

  // out[h] or out[b, h] = sum of partial[b, h, 0 .. parts-1]
  static void reduce_heads(const Params& p, const View& out, const double* partial, int64_t parts,
                           bool per_batch) {
    for (int64_t h = 0; h < p.Hq; ++h) {
      double sum = 0;
      for (int64_t b = 0; b < p.B; ++b) {
        for (int64_t c = 0; c < parts; ++c) sum += partial[(b * p.Hq + h) * parts + c];
        if (per_batch) store_scalar(out.at(b, h, 0), out.dtype, sum), sum = 0;
      }
      if (!per_batch) store_scalar(out.at(0, h, 0), out.dtype, sum);
    }
  }
};
