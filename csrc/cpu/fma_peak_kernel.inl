// Included once per instruction set, in its namespace, where kVectorBytes is the width of a
// register, kChains covers the latency, and multiply_add(x, a, b) is x * a + b, in one instruction
// where it has one.

// kChains independent chains x <- x * a + b, kUnroll * rounds links each; returns the operations
// done. 12 chains and the two constants fit in the 16 registers of AVX2 and SSE2, and cover a
// latency of 4 cycles on two units (6 for a multiplication and an addition apart). x tends to
// b / (1 - a) = 2: no denormal, no overflow.
template <class T>
double run_chains(int64_t rounds) {
  constexpr int kUnroll = 8;
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  // Unknown to the compiler, which would fold the chain that starts at 2.
  T half = T(0.5);
  asm volatile("" : "+m"(half));
  const Vector a = Vector{} + half, b = Vector{} + T(1.0);
  Vector x[kChains];
  for (int c = 0; c < kChains; ++c) x[c] = Vector{} + T(c);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) {
#pragma GCC unroll 32
      for (int c = 0; c < kChains; ++c) x[c] = multiply_add(x[c], a, b);
    }
  }
  Vector sum = x[0];
  for (int c = 1; c < kChains; ++c) sum += x[c];
  double total = 0.0;
  for (size_t lane = 0; lane < kVectorBytes / sizeof(T); ++lane)
    total += static_cast<double>(sum[lane]);
  // Never true; without a use of the result there would be nothing to compute.
  if (total < 0.0) return total;
  return 2.0 * kChains * kUnroll * static_cast<double>(kVectorBytes / sizeof(T)) *
         static_cast<double>(rounds);
}
