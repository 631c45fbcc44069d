// The dialect the kernels are written in: plain CUDA C++, and the names below. nvcc compiles it for
// devices; g++ compiles the same files for the emulator of tests/cuda_emulation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/macros.h"

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define ATTN_DEVICE __device__ __forceinline__
#define ATTN_UNROLL _Pragma("unroll")
#define ATTN_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

#else

#include <cuda_emulation.h>

#define ATTN_DEVICE inline __attribute__((always_inline))
#define ATTN_UNROLL
#define ATTN_SHARED(name) unsigned char* const name = ::cuda_emulation::current->shared

#endif

namespace attn::cuda {

using Stream = void*;  // cudaStream_t

constexpr unsigned kWholeWarp = 0xffffffffu;

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
  cuda_emulation::declare_buffers(params);
  cuda_emulation::launch({static_cast<unsigned>(blocks)}, {static_cast<unsigned>(threads)},
                         shared_bytes, [&] { kernel(params); });
#endif
}

}  // namespace attn::cuda
