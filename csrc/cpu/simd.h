// The SIMD layer, written once on compiler vector extensions: ATTN_VECTOR_BYTES (16, 32, 64) is the
// register width of the instruction set whose namespace includes this file. Intrinsics only where
// the extensions have no word for the instruction. Included by kernels.inl.

template <class T>
struct VectorTraits;
template <>
struct VectorTraits<float> {
  typedef float Type __attribute__((vector_size(ATTN_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(ATTN_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Int __attribute__((vector_size(ATTN_VECTOR_BYTES)));
  using Word = uint32_t;
};
template <>
struct VectorTraits<double> {
  typedef double Type __attribute__((vector_size(ATTN_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(ATTN_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Int __attribute__((vector_size(ATTN_VECTOR_BYTES)));
  using Word = uint64_t;
};

template <class T>
using Vec = typename VectorTraits<T>::Type;
// Lane-wise conditions: all bits of a lane set or clear.
template <class T>
using IntVec = typename VectorTraits<T>::Int;
template <class T>
using Word = typename VectorTraits<T>::Word;
template <class T>
constexpr int kLanes = ATTN_VECTOR_BYTES / sizeof(T);

constexpr int kScratchAlign = 64;

template <class T>
ATTN_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorTraits<T>::Unaligned*>(p);
}
template <class T>
ATTN_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VectorTraits<T>::Unaligned*>(p) = v;
}
template <class T>
ATTN_INLINE Vec<T> set1(T x) {
  return x - Vec<T>{};
}
template <class T>
ATTN_INLINE IntVec<T> set1_int(Word<T> x) {
  return static_cast<typename std::make_signed<Word<T>>::type>(x) - IntVec<T>{};
}
template <class T>
ATTN_INLINE Vec<T> select(IntVec<T> condition, Vec<T> a, Vec<T> b) {
  return condition ? a : b;
}
// b where either is NaN, like the x86 instruction.
template <class T>
ATTN_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

#if ATTN_VECTOR_BYTES == 64
ATTN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm512_fmadd_ps(a, b, c);
}
ATTN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}
template <>
ATTN_INLINE Vec<float> max<float>(Vec<float> a, Vec<float> b) {
  return _mm512_max_ps(a, b);
}
template <>
ATTN_INLINE Vec<double> max<double>(Vec<double> a, Vec<double> b) {
  return _mm512_max_pd(a, b);
}
#elif ATTN_VECTOR_BYTES == 32
ATTN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm256_fmadd_ps(a, b, c);
}
ATTN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
template <>
ATTN_INLINE Vec<float> max<float>(Vec<float> a, Vec<float> b) {
  return _mm256_max_ps(a, b);
}
template <>
ATTN_INLINE Vec<double> max<double>(Vec<double> a, Vec<double> b) {
  return _mm256_max_pd(a, b);
}
#elif defined(__aarch64__)
ATTN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return vfmaq_f32(c, a, b); }
ATTN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return vfmaq_f64(c, a, b);
}
#else
ATTN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return a * b + c; }
ATTN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return a * b + c; }
#endif

// As many 16-bit words as fit a register.
typedef uint16_t HalfVec __attribute__((vector_size(ATTN_VECTOR_BYTES)));
// One for each lane of Vec<float>.
typedef uint16_t FloatHalves __attribute__((vector_size(ATTN_VECTOR_BYTES / 2)));

ATTN_INLINE Vec<float> widen_bfloat16(FloatHalves x) {
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(x, IntVec<float>) << 16);
}
// Round to nearest even; a NaN becomes quiet.
ATTN_INLINE FloatHalves narrow_bfloat16(Vec<float> x) {
  const IntVec<float> bits = reinterpret_cast<IntVec<float>>(x);
  const IntVec<float> rounded = bits + (((bits >> 16) & 1) + 0x7fff);
  const IntVec<float> result = x == x ? rounded : (bits | 0x400000);
  return __builtin_convertvector(result >> 16, FloatHalves);
}

#if defined(ATTN_BFLOAT16_PAIRS)
// sum + x[2l] * y[2l] + x[2l + 1] * y[2l + 1]; subnormal numbers count as 0
ATTN_INLINE Vec<float> dot_bfloat16(Vec<float> sum, IntVec<float> x, IntVec<float> y) {
  return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
}
ATTN_INLINE FloatHalves round_bfloat16(Vec<float> x) { return (FloatHalves)_mm512_cvtneps_pbh(x); }
// Lane l holds first[l] in its lower half and second[l] in its upper one.
template <size_t... L>
ATTN_INLINE HalfVec interleave_halves(HalfVec x, std::index_sequence<L...>) {
  return __builtin_shufflevector(x, x, (L / 2 + L % 2 * sizeof...(L) / 2)...);
}
ATTN_INLINE IntVec<float> pair_bfloat16(Vec<float> first, Vec<float> second) {
  const HalfVec both = (HalfVec)_mm512_cvtne2ps_pbh(second, first);
  return reinterpret_cast<IntVec<float>>(
      interleave_halves(both, std::make_index_sequence<2 * kLanes<float>>{}));
}
#endif

template <class T>
ATTN_INLINE Vec<T> abs(Vec<T> x) {
  return max<T>(x, -x);
}
template <class T>
ATTN_INLINE T sum_lanes(Vec<T> v) {
  T total = 0;
  for (int l = 0; l < kLanes<T>; ++l) total += v[l];
  return total;
}
// {0, 1, 2, ...}
template <class T>
ATTN_INLINE Vec<T> iota() {
  Vec<T> v{};
  for (int l = 0; l < kLanes<T>; ++l) v[l] = static_cast<T>(l);
  return v;
}
// Lane l is set iff bit l of the word is.
template <class T>
ATTN_INLINE IntVec<T> lanes_from_bits(Word<T> word) {
  IntVec<T> lane_bit{};
  for (int l = 0; l < kLanes<T>; ++l)
    lane_bit[l] = typename std::make_signed<Word<T>>::type(1) << l;
  return (set1_int<T>(word) & lane_bit) != 0;
}
// Bit l is set iff lane l is: the way back.
template <class T>
ATTN_INLINE uint32_t bits_from_lanes(IntVec<T> condition) {
#if ATTN_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask(reinterpret_cast<__m512i>(condition));
  if constexpr (sizeof(T) == 8) return _mm512_movepi64_mask(reinterpret_cast<__m512i>(condition));
#elif ATTN_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps(reinterpret_cast<__m256>(condition));
  if constexpr (sizeof(T) == 8) return _mm256_movemask_pd(reinterpret_cast<__m256d>(condition));
#endif
  uint32_t bits = 0;
  for (int l = 0; l < kLanes<T>; ++l) bits |= uint32_t(condition[l] != 0) << l;
  return bits;
}
// x - x is 0 for finite x and NaN otherwise.
template <class T>
ATTN_INLINE bool all_finite(Vec<T> x) {
  return bits_from_lanes<T>((x - x) != Vec<T>{}) == 0;
}

// 2**f on [-1/2, 1/2], relative minimax with 2**0 = 1 exactly, so that rescaling by 2**0 changes
// nothing: 9.1e-8 (float), 3e-18 (double).
ATTN_INLINE Vec<float> exp2_fraction(Vec<float> f) {
  Vec<float> p = set1(1.32647291e-3f);
  p = fma(p, f, set1(9.67151264e-3f));
  p = fma(p, f, set1(5.55073374e-2f));
  p = fma(p, f, set1(2.40222421e-1f));
  p = fma(p, f, set1(6.93146978e-1f));
  return fma(p, f, set1(1.f));
}
ATTN_INLINE Vec<double> exp2_fraction(Vec<double> f) {
  constexpr double c[] = {4.43528270695727715e-10, 7.0741056135081428e-9,  1.01781980216719308e-7,
                          1.32154330896763992e-6,  1.52527334899885256e-5, 1.54035304625144321e-4,
                          1.33335581467899217e-3,  9.61812910758833524e-3, 5.55041086648199216e-2,
                          2.40226506959101562e-1,  6.9314718055994533e-1,  1.0};
  Vec<double> p = set1(c[0]);
#pragma GCC unroll 16
  for (int k = 1; k < 12; ++k) p = fma(p, f, set1(c[k]));
  return p;
}

// 2**x; 0 below x = -1000 (-inf included), NaN for NaN.
#if ATTN_VECTOR_BYTES == 64
ATTN_INLINE Vec<float> exp2(Vec<float> x) {
  x = max<float>(set1(-1000.f), x);
  const Vec<float> n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(exp2_fraction(x - n), n);
}
ATTN_INLINE Vec<double> exp2(Vec<double> x) {
  x = max<double>(set1(-2000.), x);
  const Vec<double> n = _mm512_roundscale_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_pd(exp2_fraction(x - n), n);
}
#else
// The sum x + magic holds round(x) in its low mantissa bits; moved up they are an exponent. Results
// below the smallest normal number are flushed to 0.
template <class T, int kMantissa, int kBias>
ATTN_INLINE Vec<T> exp2_by_bits(Vec<T> x, T magic) {
  const IntVec<T> tiny = x < set1(static_cast<T>(1 - kBias));
  const Vec<T> shifted = x + set1(magic);
  const Vec<T> f = x - (shifted - set1(magic));
  const IntVec<T> n =
      reinterpret_cast<IntVec<T>>(shifted) - reinterpret_cast<IntVec<T>>(set1(magic));
  const Vec<T> power = reinterpret_cast<Vec<T>>((n + kBias) << kMantissa);
  return select<T>(tiny, Vec<T>{}, exp2_fraction(f) * power);
}
ATTN_INLINE Vec<float> exp2(Vec<float> x) { return exp2_by_bits<float, 23, 127>(x, 12582912.f); }
ATTN_INLINE Vec<double> exp2(Vec<double> x) {
  return exp2_by_bits<double, 52, 1023>(x, 6755399441055744.);
}
#endif

constexpr double kLog2e = 1.4426950408889634074;

// tanh: x * P(x**2) near 0, where 1 - 2 / (1 + exp(2x)) would cancel.
ATTN_INLINE Vec<float> tanh(Vec<float> x) {
  const Vec<float> magnitude = abs<float>(x), y = x * x;
  Vec<float> p = set1(-0.00565998916f);
  p = fma(p, y, set1(0.0205909884f));
  p = fma(p, y, set1(-0.0537210680f));
  p = fma(p, y, set1(0.133311275f));
  p = fma(p, y, set1(-0.333332605f));
  const Vec<float> near = fma(p * y, x, x);
  const Vec<float> e = exp2(magnitude * set1(static_cast<float>(-2 * kLog2e)));
  const Vec<float> far = (set1(1.f) - e) / (set1(1.f) + e);
  return select<float>(magnitude < set1(0.625f), near, select<float>(x < Vec<float>{}, -far, far));
}
ATTN_INLINE Vec<double> tanh(Vec<double> x) {
  Vec<double> t{};
  for (int l = 0; l < kLanes<double>; ++l) t[l] = std::tanh(x[l]);
  return t;
}

// One step of a register transpose: exchange the off-diagonal kStep blocks of two rows.
template <class T, int kStep, size_t... L>
ATTN_INLINE void exchange(Vec<T>& a, Vec<T>& b, std::index_sequence<L...>) {
  constexpr int W = kLanes<T>;
  const Vec<T> low =
      __builtin_shufflevector(a, b, ((L & kStep) == 0 ? int(L) : W + int(L) - kStep)...);
  b = __builtin_shufflevector(a, b, ((L & kStep) == 0 ? int(L) + kStep : W + int(L))...);
  a = low;
}
template <class T, int kStep = 1>
ATTN_INLINE void transpose(Vec<T> (&x)[kLanes<T>]) {
  if constexpr (kStep < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i)
      if ((i & kStep) == 0)
        exchange<T, kStep>(x[i], x[i + kStep], std::make_index_sequence<kLanes<T>>{});
    transpose<T, kStep * 2>(x);
  }
}
