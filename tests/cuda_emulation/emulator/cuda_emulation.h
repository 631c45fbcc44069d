// Runs a CUDA kernel from its own source on the CPU: every CUDA thread of a block is a fiber. A
// kernel file compiled with -fsanitize=thread (at the compile step alone) is checked as well: the
// compiler's calls at every load and store end in memory.cpp instead of in ThreadSanitizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint3 {
  unsigned x, y, z;
};

namespace cuda_emulation {

// What a device is told.
struct Command {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  const void* parameters;
  size_t parameter_bytes;
};

struct Options {
  uint64_t seed = 0;             // 0: threads take turns; else a random schedule
  size_t max_shared = 99 << 10;  // of a block, on the smallest of the targets
  int architecture = 80;         // that kernels are compiled for, as in sm_80
  // If set, runs kernels in place of their code on the host.
  void (*run_elsewhere)(const Command&) = nullptr;
};
Options& options();

// What a launch did wrong. `kind` is one of race, uninitialised, shared bounds, global bounds,
// misaligned, divergence, launch, async copy, bank conflict.
struct Diagnostic {
  std::string kind, text;
};
std::vector<Diagnostic>& diagnostics();
bool checked();  // some kernel file is built with the compiler's calls

// Global memory that the next launch may touch; only known to checked kernels.
struct Buffer {
  const void* data;
  size_t bytes;
  std::string name;
  bool writable;
};
void set_buffers(std::vector<Buffer> buffers);
// The one that has all of these bytes, or null.
const Buffer* buffer_at(const void* address, size_t bytes);
// Calls set_buffers with all that a kernel of these parameters may touch: whoever emulates a kernel
// specialises it.
template <class Params>
void declare_buffers(const Params& params);

struct Thread {
  uint3 index, block;
  dim3 block_size, grid_size;
  unsigned linear, warp, lane;
  unsigned char* shared;
};
extern Thread* current;

// The most threads and bytes of shared memory that a kernel was launched with. Its address counts
// from where its library was loaded.
struct Launch {
  uintptr_t kernel;
  int threads;
  size_t shared_bytes;
};
std::vector<Launch>& launches();
void note_launch(const void* kernel, int threads, size_t shared_bytes);

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*run)(void*), void* argument);

template <class F>
void launch(dim3 grid, dim3 block, size_t shared_bytes, F kernel) {
  run_grid(grid, block, shared_bytes, [](void* f) { (*static_cast<F*>(f))(); }, &kernel);
}

template <class Params>
void launch_kernel(void (*kernel)(Params), dim3 grid, dim3 block, size_t shared_bytes,
                   const Params& params) {
  declare_buffers(params);
  if (const auto run_elsewhere = options().run_elsewhere)
    run_elsewhere(
        {reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, &params, sizeof params});
  else
    launch(grid, block, shared_bytes, [&] { kernel(params); });
}

// All threads of the block arrive; returns whether any came with `vote`.
bool block_barrier(bool vote);

// All lanes of `mask` arrive at the same operation; the last one runs `work` for all of them, on
// the arguments of each lane.
using WarpWork = void (*)(void** arguments, unsigned lanes);
void warp_collective(const char* operation, unsigned mask, void* argument, WarpWork work);
void sync_warp(unsigned mask);

enum class Shuffle { kIndex, kUp, kDown, kXor };
uint64_t shuffle_bits(unsigned mask, uint64_t value, int operand, int width, Shuffle kind);
template <class T>
T shuffle(unsigned mask, T value, int operand, int width, Shuffle kind) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shuffle_bits(mask, bits, operand, width, kind);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
unsigned ballot(unsigned mask, bool vote);

// The instructions around tensor cores, as csrc/cuda/primitives.cuh describes them.
void load_matrices(uint32_t (&result)[4], const void* row, bool transposed);
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  float (*decode)(uint32_t));
// Bytes arrive between the copy and its wait: at the wait (seed 0), or at a random one of both.
void copy_async(void* to, const void* from, unsigned bytes, unsigned source_bytes);
void end_copy_group();
void wait_for_copies(unsigned groups_left);

}  // namespace cuda_emulation

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define threadIdx (::cuda_emulation::current->index)
#define blockIdx (::cuda_emulation::current->block)
#define blockDim (::cuda_emulation::current->block_size)
#define gridDim (::cuda_emulation::current->grid_size)

inline void __syncthreads() { ::cuda_emulation::block_barrier(false); }
inline int __syncthreads_or(int vote) { return ::cuda_emulation::block_barrier(vote != 0); }
inline void __syncwarp(unsigned mask = ~0u) { ::cuda_emulation::sync_warp(mask); }
inline unsigned __ballot_sync(unsigned mask, int vote) {
  return ::cuda_emulation::ballot(mask, vote != 0);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return ::cuda_emulation::shuffle(mask, value, lane, width, ::cuda_emulation::Shuffle::kIndex);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = 32) {
  return ::cuda_emulation::shuffle(mask, value, by, width, ::cuda_emulation::Shuffle::kUp);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32) {
  return ::cuda_emulation::shuffle(mask, value, by, width, ::cuda_emulation::Shuffle::kDown);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
  return ::cuda_emulation::shuffle(mask, value, by, width, ::cuda_emulation::Shuffle::kXor);
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
