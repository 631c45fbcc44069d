#include "cpu/fma_peak.h"

#include <cstddef>
#include <stdexcept>
#include <string>

#include "cpu/thread_clock.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace attn {
namespace generic {
namespace {
constexpr size_t kVectorBytes = 16;
constexpr int kChains = 12;
#if defined(__aarch64__)
inline float32x4_t multiply_add(float32x4_t x, float32x4_t a, float32x4_t b) {
  return vfmaq_f32(b, x, a);
}
inline float64x2_t multiply_add(float64x2_t x, float64x2_t a, float64x2_t b) {
  return vfmaq_f64(b, x, a);
}
#else
template <class Vector>
inline Vector multiply_add(Vector x, Vector a, Vector b) {
  return x * a + b;
}
#endif
#include "cpu/fma_peak_kernel.inl"
}  // namespace
}  // namespace generic
}  // namespace attn

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace attn {
namespace avx2 {
namespace {
constexpr size_t kVectorBytes = 32;
constexpr int kChains = 12;
inline __m256 multiply_add(__m256 x, __m256 a, __m256 b) { return _mm256_fmadd_ps(x, a, b); }
inline __m256d multiply_add(__m256d x, __m256d a, __m256d b) { return _mm256_fmadd_pd(x, a, b); }
#include "cpu/fma_peak_kernel.inl"
}  // namespace
}  // namespace avx2
}  // namespace attn
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,fma")
namespace attn {
namespace avx512 {
namespace {
constexpr size_t kVectorBytes = 64;
constexpr int kChains = 12;
inline __m512 multiply_add(__m512 x, __m512 a, __m512 b) { return _mm512_fmadd_ps(x, a, b); }
inline __m512d multiply_add(__m512d x, __m512d a, __m512d b) { return _mm512_fmadd_pd(x, a, b); }
#include "cpu/fma_peak_kernel.inl"
}  // namespace
}  // namespace avx512
}  // namespace attn
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bf16,fma")
namespace attn {
namespace avx512_bf16 {
namespace {
constexpr size_t kVectorBytes = 64;
constexpr int kChains = 20;  // a longer latency, and 32 registers
// Two products a lane, of the pairs (0, 0.5) and (0, 1) that the floats 0.5 and 1 are in bfloat16:
// x grows by 0.5, and no further than where that is rounded away.
inline __m512 multiply_add(__m512 x, __m512 a, __m512 b) {
  return _mm512_dpbf16_ps(x, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
#include "cpu/fma_peak_kernel.inl"
double run_pairs(int64_t rounds) { return 2.0 * run_chains<float>(rounds); }
}  // namespace
}  // namespace avx512_bf16
}  // namespace attn
#pragma GCC pop_options

#endif

namespace attn {
namespace {

using Kernel = double (*)(int64_t rounds);

template <class T>
Kernel kernel_of([[maybe_unused]] CpuCapability capability) {
#if defined(__x86_64__)
  if (capability >= CpuCapability::kAvx512) return avx512::run_chains<T>;
  if (capability == CpuCapability::kAvx2) return avx2::run_chains<T>;
#endif
  return generic::run_chains<T>;
}

Kernel checked_kernel(CpuCapability capability, PeakDtype dtype) {
  if (capability > best_cpu_capability()) {
    throw std::invalid_argument(std::string("this machine has no ") + capability_name(capability));
  }
#if defined(__x86_64__)
  if (dtype == PeakDtype::kBFloat16 && capability >= CpuCapability::kAvx512Bf16)
    return avx512_bf16::run_pairs;
#endif
  return dtype == PeakDtype::kFloat64 ? kernel_of<double>(capability)
                                      : kernel_of<float>(capability);
}

}  // namespace

double fma_peak(CpuCapability capability, PeakDtype dtype, double seconds) {
  if (!(seconds > 0.0 && seconds <= 60.0)) {
    throw std::invalid_argument("seconds must be in (0, 60], got " + std::to_string(seconds));
  }
  return 1e-9 * best_rate(seconds, checked_kernel(capability, dtype));
}

double fma_work(CpuCapability capability, PeakDtype dtype, double gflop) {
  if (!(gflop > 0.0 && gflop <= 1e6)) {
    throw std::invalid_argument("gflop must be in (0, 1e6], got " + std::to_string(gflop));
  }
  const Kernel kernel = checked_kernel(capability, dtype);
  const double per_round = kernel(1);
  return 1e-9 * kernel(static_cast<int64_t>(1e9 * gflop / per_round) + 1);
}

}  // namespace attn
