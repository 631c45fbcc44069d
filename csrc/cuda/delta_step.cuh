// One token of the delta rule, in place on the states.
#pragma once

#include "core/linear_params.h"
#include "cuda/tile.cuh"

namespace attn::cuda {

struct DeltaStep : LinearParams {};

// A block owns 32 columns of a state, a lane one of them; its warps share the rows.
template <class T>
class DeltaStepBlock {
 public:
  static constexpr int kColumns = 32, kWarps = kThreads / 32;

  ATTN_DEVICE DeltaStepBlock(const DeltaStep& step, int64_t item, T* shared)
      : p(step), partial_(shared) {
    const int64_t tiles = tiles_over(p.Dv, kColumns);
    column_ = item % tiles * kColumns + threadIdx.x % 32;
    head_ = item / tiles % p.Hs;
    b_ = item / tiles / p.Hs;
  }

  ATTN_DEVICE void run() {
    const int64_t key_head = head_ / (p.Hs / p.Hk), value_head = head_ / (p.Hs / p.Hv);
    T read = 0;
    for (int64_t d = first_row(); inside() && d < p.D; d += kWarps)
      read += input(p.key, key_head, d) * decay(d) * state(d);
    read = across_warps(read);
    const T value =
        inside() ? input(p.beta, head_, 0) * (input(p.value, value_head, column_) - read) : T(0);
    for (int64_t d = first_row(); inside() && d < p.D; d += kWarps)
      state(d) = decay(d) * state(d) + input(p.key, key_head, d) * value;
    const int64_t group = p.group();
    for (int64_t h = head_ * group; h < (head_ + 1) * group; ++h) {
      T sum = 0;
      for (int64_t d = first_row(); inside() && d < p.D; d += kWarps)
        sum += input(p.query, h / (p.H / p.Hq), d) * state(d);
      sum = across_warps(sum);
      if (inside() && first_row() == 0)
        store_element(p.out.at(b_, h, 0, column_), p.out.dtype, static_cast<T>(p.scale) * sum);
    }
  }

 private:
  const DeltaStep& p;
  T* partial_;  // [kWarps][kColumns]
  int64_t column_, head_, b_;

  static ATTN_DEVICE int first_row() { return static_cast<int>(threadIdx.x) / 32; }
  ATTN_DEVICE bool inside() const { return column_ < p.Dv; }
  ATTN_DEVICE T input(const View& view, int64_t h, int64_t column) const {
    return load_element<T>(view.at(b_, h, 0, column), view.dtype);
  }
  ATTN_DEVICE T decay(int64_t d) const {
    return p.decay ? std::exp(input(p.decay, head_, d)) : T(1);
  }
  ATTN_DEVICE T& state(int64_t d) const {
    return *reinterpret_cast<T*>(p.initial.at(b_, head_, d, column_));
  }
  // Of one column; every thread gets the sum, in the order of the warps.
  ATTN_DEVICE T across_warps(T value) const {
    partial_[threadIdx.x] = value;
    __syncthreads();
    T sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += partial_[warp * 32 + threadIdx.x % 32];
    __syncthreads();
    return sum;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) delta_step_kernel(const __grid_constant__ DeltaStep p) {
  ATTN_SHARED(shared);
  DeltaStepBlock<T>(p, blockIdx.x, reinterpret_cast<T*>(shared)).run();
}

}  // namespace attn::cuda
