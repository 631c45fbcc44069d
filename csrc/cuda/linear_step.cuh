// One token of linear attention, in place on the states: a block owns some columns of one state,
// which memory gives and takes once for each head that reads it.
#pragma once

#include "cuda/linear_rows.cuh"

namespace attn::cuda {

// What a state keeps of channel d.
template <class T>
ATTN_DEVICE T step_decay(const LinearCall& p, int64_t b, int64_t hs, int64_t d) {
  if (!p.decay) return 1;
  return std::exp(load_element<T>(p.decay.at(b, hs, 0, p.channel_decay() ? d : 0), p.decay.dtype));
}

// z <- decay z + phi(k), and row_factor: what each head's output is multiplied by. A warp for each
// state head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    step_factors_kernel(const __grid_constant__ LinearCall p) {
  const int64_t item = warp_item(), hs = item % p.Hs, b = item / p.Hs;
  if (b >= p.B) return;
  const Rows keys = key_rows(p, b, hs, 1);
  for (int64_t d = lane_in_warp(); p.normalize && d < p.D; d += 32) {
    T& z = *reinterpret_cast<T*>(p.initial_z.at(b, hs, 0, d));
    z = z * step_decay<T>(p, b, hs, d) + keys.load<T>(0, d);
  }
  for (int64_t h = hs * p.group(); h < (hs + 1) * p.group(); ++h) {
    const Rows queries = query_rows(p, b, h, 1);
    T sum = 0;
    for (int64_t d = lane_in_warp(); p.normalize && d < p.D; d += 32)
      sum += queries.load<T>(0, d) * *reinterpret_cast<const T*>(p.initial_z.at(b, hs, 0, d));
    sum = warp_sum(sum);
    if (lane_in_warp() == 0)
      static_cast<T*>(p.row_factor)[b * p.H + h] =
          p.normalize ? 1 / (sum + static_cast<T>(p.eps)) : static_cast<T>(p.scale);
  }
}

// A warp's lanes are 32 columns; the block's warps share the rows of the state.
template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(const __grid_constant__ LinearCall p) {
  ATTN_SHARED(shared);
  auto* sums = reinterpret_cast<T*>(shared);  // [warp][lane]
  const int64_t blocks = tiles_over(p.Dv, 32), head = blockIdx.x / blocks;
  const int64_t hs = head % p.Hs, b = head / p.Hs;
  const int64_t c = blockIdx.x % blocks * 32 + lane_in_warp();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const bool inside = c < p.Dv;
  const Rows keys = key_rows(p, b, hs, 1);
  const T value = value_rows(p, b, hs, 1).template load<T>(0, c);
  for (int64_t d = warp; inside && d < p.D; d += kThreads / 32) {
    T& s = *reinterpret_cast<T*>(p.initial.at(b, hs, d, c));
    s = s * step_decay<T>(p, b, hs, d) + keys.load<T>(0, d) * value;
  }
  for (int64_t h = hs * p.group(); h < (hs + 1) * p.group(); ++h) {
    const Rows queries = query_rows(p, b, h, 1);
    T sum = 0;
    for (int64_t d = warp; inside && d < p.D; d += kThreads / 32)
      sum += queries.load<T>(0, d) * *reinterpret_cast<const T*>(p.initial.at(b, hs, d, c));
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && inside) {
      for (int other = 1; other < kThreads / 32; ++other) sum += sums[other * 32 + threadIdx.x];
      store_element(p.out.at(b, h, 0, c), p.out.dtype,
                    sum * static_cast<const T*>(p.row_factor)[b * p.H + h]);
    }
    __syncthreads();
  }
}

template <class T>
void linear_step(const LinearCall& p, Stream stream) {
  map_features<T>(p, stream);
  launch(step_factors_kernel<T>, blocks_of_warps(p.B * p.Hs), kThreads, 0, stream, p);
  launch(step_kernel<T>, p.B * p.Hs * tiles_over(p.Dv, 32), kThreads, kThreads * sizeof(T), stream,
         p);
}

}  // namespace attn::cuda
