// The log-sum-exp of the forward pass, as what comes after it takes it from the scores. Included by
// kernels.inl.

// From here on the rounding of lse shows in the weights: exp(s - lse) may be off by 0.4 % (float).
template <class A>
constexpr double kLargeLse = std::is_same_v<A, double> ? 1e14 : 65536;

// lse of row i in two parts to subtract in turn: the second is 0 but where one is too coarse. The
// weights exp(s - lse) of an empty row become exp(-inf) = 0. scratch: of AttentionForward<E>.
template <class E>
void split_lse(const AttentionParams& p, int64_t b, int64_t h, int64_t i, void* scratch,
               Compute<E>* lse, Compute<E>* lse_low) {
  using A = Compute<E>;
  const double value = load_scalar(p.lse.at(b, h, i), p.lse.dtype);
  *lse = static_cast<A>(value == -INFINITY ? INFINITY : value);
  *lse_low = 0;
  if (std::abs(value) < kLargeLse<A> || !(std::abs(value) < INFINITY)) return;
  A m, l;
  AttentionForward<E>::row_state(p, b, h, i, scratch, &m, &l);
  if (p.sinks) {
    const double sink = load_scalar(p.sinks.at(0, h, 0), p.sinks.dtype);
    const double top = std::fmax(static_cast<double>(m), sink);
    l = static_cast<A>((l == 0 ? 0 : l * std::exp(m - top)) + std::exp(sink - top));
    m = static_cast<A>(top);
  }
  *lse = m;
  *lse_low = static_cast<A>(std::log(static_cast<double>(l)));
}
