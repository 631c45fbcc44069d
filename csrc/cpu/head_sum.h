// Gradients of heads that others share: to[b][h] = sum_g from[b][h * group + g]; of a tensor
// without batch and tokens the sum over those, too. Included by kernels.inl.

template <class A>
struct HeadSum {
  using Params = HeadSumParams;

  static Plan plan(const HeadSumParams& p) { return {p.over_tokens ? p.heads : p.B * p.heads, 0}; }

  static void run(const HeadSumParams& p, int64_t item, void*) {
    const int64_t h = item % p.heads;
    if (p.over_tokens)
      sum_tokens(p, h);
    else
      for (int64_t i = 0; i < p.L; ++i) sum_row(p, item / p.heads, h, i);
  }

 private:
  static void sum_row(const HeadSumParams& p, int64_t b, int64_t h, int64_t i) {
    for (int64_t c = 0; c < p.D; c += kLanes<A>) {
      const int count = static_cast<int>(p.D - c);
      Vec<A> sum{};
      for (int64_t g = 0; g < p.group; ++g)
        sum += load_elements<A>(p.from.at(b, h * p.group + g, i, c), p.from.dtype, 1, count);
      store_elements<A>(p.to.at(b, h, i, c), p.to.dtype, p.to.stride[3], count, sum);
    }
  }
  static void sum_tokens(const HeadSumParams& p, int64_t h) {
    double sum = 0;
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t i = 0; i < p.L; ++i) sum += load_scalar(p.from.at(b, h, i), p.from.dtype);
    store_scalar(p.to.at(0, h, 0), p.to.dtype, sum);
  }
};
