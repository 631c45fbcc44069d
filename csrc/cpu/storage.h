// Rows of any storage dtype and stride, read into and written from compute vectors. Included by
// kernels.inl.

ATTN_INLINE double load_scalar(const char* p, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return *reinterpret_cast<const float*>(p);
    case Dtype::kFloat64:
      return *reinterpret_cast<const double*>(p);
    case Dtype::kBFloat16:
      return bfloat16_to_float(*reinterpret_cast<const uint16_t*>(p));
    case Dtype::kFloat16:
      return float16_to_float(*reinterpret_cast<const uint16_t*>(p));
  }
  return 0;
}
ATTN_INLINE void store_scalar(char* p, Dtype dtype, double x) {
  switch (dtype) {
    case Dtype::kFloat32:
      *reinterpret_cast<float*>(p) = static_cast<float>(x);
      break;
    case Dtype::kFloat64:
      *reinterpret_cast<double*>(p) = x;
      break;
    case Dtype::kBFloat16:
      *reinterpret_cast<uint16_t*>(p) = float_to_bfloat16(static_cast<float>(x));
      break;
    case Dtype::kFloat16:
      *reinterpret_cast<uint16_t*>(p) = float_to_float16(static_cast<float>(x));
      break;
  }
}

template <class A>
constexpr Dtype kComputeDtype = std::is_same_v<A, double> ? Dtype::kFloat64 : Dtype::kFloat32;

// Elements 0 .. count-1 at p, p + stride, ... (stride in elements); the other lanes are 0.
template <class A>
__attribute__((noinline)) Vec<A> convert_elements(const char* p, Dtype dtype, int64_t stride,
                                                  int count) {
  constexpr int W = kLanes<A>;
  if (stride == 0 && count >= W) return set1(static_cast<A>(load_scalar(p, dtype)));
  if constexpr (std::is_same_v<A, float>) {
    if (stride == 1 && count >= W) {
      const auto* half = reinterpret_cast<const uint16_t*>(p);
      if (dtype == Dtype::kBFloat16) {
        FloatHalves x;
        memcpy(&x, half, sizeof(x));
        return widen_bfloat16(x);
      }
#if ATTN_VECTOR_BYTES == 64
      if (dtype == Dtype::kFloat16)
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
#elif ATTN_VECTOR_BYTES == 32
      if (dtype == Dtype::kFloat16)
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
#endif
    }
  }
  A lane[W] = {};
  const int64_t step = stride * size_of(dtype);
  for (int l = 0; l < W && l < count; ++l)
    lane[l] = static_cast<A>(load_scalar(p + l * step, dtype));
  return load(lane);
}
template <class A>
ATTN_INLINE Vec<A> load_elements(const char* p, Dtype dtype, int64_t stride, int count) {
  if (dtype == kComputeDtype<A> && stride == 1 && count >= kLanes<A>)
    return load(reinterpret_cast<const A*>(p));
  return convert_elements<A>(p, dtype, stride, count);
}

// Lanes 0 .. count-1 to p, p + stride, ...
template <class A>
__attribute__((noinline)) void store_converted(char* p, Dtype dtype, int64_t stride, int count,
                                               Vec<A> v) {
  constexpr int W = kLanes<A>;
  if constexpr (std::is_same_v<A, float>) {
    if (dtype == Dtype::kBFloat16 && stride == 1 && count >= W) {
      const FloatHalves x = narrow_bfloat16(v);
      memcpy(p, &x, sizeof(x));
      return;
    }
#if ATTN_VECTOR_BYTES >= 32
    constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    if (dtype == Dtype::kFloat16 && stride == 1 && count >= W) {
#if ATTN_VECTOR_BYTES == 64
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, kRound));
#else
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, kRound));
#endif
      return;
    }
#endif
  }
  A lane[W];
  store(lane, v);
  const int64_t step = stride * size_of(dtype);
  for (int l = 0; l < W && l < count; ++l)
    store_scalar(p + l * step, dtype, static_cast<double>(lane[l]));
}
template <class A>
ATTN_INLINE void store_elements(char* p, Dtype dtype, int64_t stride, int count, Vec<A> v) {
  if (dtype == kComputeDtype<A> && stride == 1 && count >= kLanes<A>)
    return store(reinterpret_cast<A*>(p), v);
  store_converted<A>(p, dtype, stride, count, v);
}

ATTN_INLINE void prefetch_bytes(const char* p, int64_t count) {
  constexpr int64_t kLine = 64;
  for (int64_t at = 0; at < count; at += kLine) __builtin_prefetch(p + at, 0, 2);
}

// dst[i][c] = row i, columns 0 .. columns-1, for n rows `row_bytes` apart.
template <class A>
void copy_rows(const char* rows, int64_t row_bytes, Dtype dtype, int64_t stride, int n, int columns,
               A* dst, int ld) {
  constexpr int W = kLanes<A>;
  const bool same = dtype == kComputeDtype<A> && stride == 1;
  // Hardware doesn't look ahead from row to row where they lie far apart.
  constexpr int kAhead = 16;
  const int64_t bytes = columns * size_of(dtype);
  const bool far = stride == 1 && row_bytes > 2 * bytes;
  for (int i = 0; i < n; ++i, rows += row_bytes, dst += ld) {
    if (far && i + kAhead < n) prefetch_bytes(rows + kAhead * row_bytes, bytes);
    int c = 0;
    for (; same && c + W <= columns; c += W)
      store(dst + c, load(reinterpret_cast<const A*>(rows) + c));
    for (; c < columns; c += W) {
      const Vec<A> x =
          load_elements<A>(rows + c * stride * size_of(dtype), dtype, stride, columns - c);
      if (columns - c >= W)
        store(dst + c, x);
      else
        for (int l = 0; l < columns - c; ++l) dst[c + l] = x[l];
    }
  }
}

// dst[c][lane] = factor * row[lane][c]: rows become lanes. dst has ld lanes a column, a multiple of
// the vector.
template <class A>
void pack_lanes(const char* const* rows, int lanes, Dtype dtype, int64_t stride, int columns,
                A factor, A* dst, int ld) {
  constexpr int W = kLanes<A>;
  for (int lane = 0; lane < lanes; lane += W)
    for (int c = 0; c < columns; c += W) {
      Vec<A> x[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        x[i] = load_elements<A>(rows[lane + i] + c * stride * size_of(dtype), dtype, stride,
                                columns - c);
      transpose<A>(x);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (c + i < columns) store(dst + (c + i) * ld + lane, x[i] * set1(factor));
    }
}

// The way back: row[lane][c] = factor[lane] * src[c][lane] for lanes 0 .. count-1.
template <class A>
void unpack_lanes(const A* src, int ld, const A* factor, int count, int columns, char* const* rows,
                  Dtype dtype, int64_t stride) {
  constexpr int W = kLanes<A>;
  for (int lane = 0; lane < count; lane += W)
    for (int c = 0; c < columns; c += W) {
      Vec<A> x[W];
      const Vec<A> scale = load(factor + lane);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        x[i] = c + i < columns ? load(src + (c + i) * ld + lane) * scale : Vec<A>{};
      transpose<A>(x);
      for (int i = 0; i < W && lane + i < count; ++i)
        store_elements<A>(rows[lane + i] + c * stride * size_of(dtype), dtype, stride, columns - c,
                          x[i]);
    }
}

template <class A>
bool rows_finite(const A* rows, int64_t ld, int n, int columns) {
  constexpr int W = kLanes<A>, kSums = 4;  // that don't wait for each other
  Vec<A> bad[kSums] = {};
  A bad_tail = 0;
  const auto look = [&](Vec<A>& sum, const A* at) ATTN_INLINE_LAMBDA {
    const Vec<A> x = load(at);
    sum += x - x;
  };
  for (int i = 0; i < n; ++i, rows += ld) {
    int c = 0;
    for (; c + kSums * W <= columns; c += kSums * W)
#pragma GCC unroll 4
      for (int k = 0; k < kSums; ++k) look(bad[k], rows + c + k * W);
    for (; c + W <= columns; c += W) look(bad[0], rows + c);
    for (; c < columns; ++c) bad_tail += rows[c] - rows[c];
  }
  return all_finite<A>((bad[0] + bad[1]) + (bad[2] + bad[3])) && bad_tail == 0;
}
