// The dialect the kernels are written in: plain CUDA C++, and the names below. nvcc compiles it for
// devices; g++ compiles the same files for the emulator of tests/cuda_emulation.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/scalar.h"

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define ATTN_DEVICE __device__ __forceinline__
#define ATTN_UNROLL _Pragma("unroll")
#define ATTN_ROLLED _Pragma("unroll 1")
#define ATTN_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

#else

#include <cuda_emulation.h>

#define ATTN_DEVICE inline __attribute__((always_inline))
#define ATTN_UNROLL
#define ATTN_ROLLED
#define ATTN_SHARED(name) unsigned char* const name = ::cuda_emulation::current->shared

#endif

namespace attn::cuda {

using Stream = void*;  // cudaStream_t

constexpr unsigned kWholeWarp = 0xffffffffu;
ATTN_DEVICE int lane_in_warp() { return static_cast<int>(threadIdx.x) % 32; }

constexpr size_t kMostShared = 99 << 10;  // bytes of a block, on the smallest of the devices

// Code for an architecture without the instructions below, or for none, has empty kernels.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kTensorCores = false;
#else
constexpr bool kTensorCores = true;
#endif

// Four 8 x 8 matrices of 16-bit elements in shared memory, spread over a warp. Lane n gives the row
// n % 8 of matrix n / 8, 16 aligned bytes, and gets of matrix m the two elements from column
// 2 * (n % 4) on of row n / 4, in result[m].
ATTN_DEVICE void load_matrices(uint32_t (&result)[4], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
#else
  cuda_emulation::load_matrices(result, row, false);
#endif
}

// The same of the matrices transposed: the two elements from row 2 * (n % 4) on of column n / 4.
ATTN_DEVICE void load_matrices_transposed(uint32_t (&result)[4], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
#else
  cuda_emulation::load_matrices(result, row, true);
#endif
}

// Two floats as elements of kDtype, `low` in the low half.
template <Dtype kDtype>
ATTN_DEVICE uint32_t pack(float low, float high) {
#if defined(__CUDACC__)
  uint32_t result;
  if constexpr (kDtype == Dtype::kFloat16)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#else
  const auto encode = kDtype == Dtype::kFloat16 ? float_to_float16 : float_to_bfloat16;
  return encode(low) | uint32_t{encode(high)} << 16;
#endif
}

// An element of kDtype in the low half.
template <Dtype kDtype>
ATTN_DEVICE float unpack(uint32_t bits) {
  const auto element = static_cast<uint16_t>(bits);
  if constexpr (kDtype == Dtype::kBFloat16) return bfloat16_to_float(element);
#if defined(__CUDACC__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(element));
  return result;
#else
  return float16_to_float(element);
#endif
}

// sum += a b, spread over a warp: sum 16 x 8, a 16 x 16 and b 16 x 8 of kDtype. With g = lane / 4
// and t = lane % 4, sum[n] is at row g + 8 * (n / 2), column 2 t + n % 2; the pair a[n] is at row
// g + 8 * (n % 2) from column 2 t + 8 * (n / 2) on; the pair b[n] at column g from row 2 t + 8 n
// on.
template <Dtype kDtype>
ATTN_DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  if constexpr (kDtype == Dtype::kFloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  cuda_emulation::multiply_add(sum, a, b, unpack<kDtype>);
#endif
}

// Begins to copy `bytes` <= 16 bytes to shared memory and fills up to 16 with 0; both addresses are
// multiples of 16. Copies form groups; a thread may touch what it copied once it has waited, and
// others after a barrier that follows.
ATTN_DEVICE void copy_async(void* to, const void* from, int bytes) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
#else
  cuda_emulation::copy_async(to, from, 16, bytes);
#endif
}

ATTN_DEVICE void end_copy_group() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_emulation::end_copy_group();
#endif
}

// Until all but the last kGroups groups of this thread have arrived.
template <int kGroups>
ATTN_DEVICE void wait_for_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#else
  cuda_emulation::wait_for_copies(kGroups);
#endif
}

// x, made anew each time: keeps what follows from it from staying in registers throughout a loop.
ATTN_DEVICE int64_t made_anew(int64_t x) {
#if defined(__CUDACC__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}

// 2 ** x and 1 / x, to about 2 units in the last place; subnormal numbers count as 0.
ATTN_DEVICE float fast_exp2(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

ATTN_DEVICE float fast_reciprocal(float x) {
#if defined(__CUDACC__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1 / x;
#endif
}

// The architecture that the current device's code of a kernel was compiled for, as in sm_80: 80.
template <class Params>
int architecture_of(void (*kernel)(Params)) {
#if defined(__CUDACC__)
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("attention_ext: no code for this CUDA device: ") +
                             cudaGetErrorString(error));
  return attributes.ptxVersion;
#else
  (void)kernel;
  return cuda_emulation::options().architecture;
#endif
}

// Launches a kernel of one argument over `blocks` blocks; std::runtime_error if the device refuses.
template <class Params>
void launch(void (*kernel)(Params), int64_t blocks, int threads, size_t shared_bytes, Stream stream,
            const Params& params) {
  if (blocks <= 0) return;
  if (blocks > 0x7fffffff)
    throw std::runtime_error("attention_ext: a CUDA grid of " + std::to_string(blocks) +
                             " blocks is too large");
#if defined(__CUDACC__)
  constexpr size_t kWithoutAsking = 48 << 10;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kWithoutAsking)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  if (error == cudaSuccess) {
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes,
             static_cast<cudaStream_t>(stream)>>>(params);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("attention_ext: a CUDA kernel did not start: ") +
                             cudaGetErrorString(error));
#else
  (void)stream;
  cuda_emulation::note_launch(reinterpret_cast<const void*>(kernel), threads, shared_bytes);
  cuda_emulation::launch_kernel(kernel, {static_cast<unsigned>(blocks)},
                                {static_cast<unsigned>(threads)}, shared_bytes, params);
#endif
}

}  // namespace attn::cuda
