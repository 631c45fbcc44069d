// How much of a loop's data is to stay in the second-level cache. These sizes move data, not bits:
// sums are cut at fixed places, so that results don't depend on the caches of the machine. Included
// by kernels.inl.

// Rows of `row_bytes` that fit beside `fixed_bytes` in half of the cache: a multiple of `step`,
// from `step` to `most`.
inline int rows_in_cache(int64_t fixed_bytes, int64_t row_bytes, int step, int most) {
  constexpr int64_t kUnknown = 512 * 1024;
  const int64_t l2 = cache_sizes().l2 > 0 ? cache_sizes().l2 : kUnknown;
  const int64_t rows = (l2 / 2 - fixed_bytes) / max64(1, row_bytes) / step * step;
  return static_cast<int>(max64(step, min64(rows, most)));
}
