#include "cuda/elementwise.h"

#include "core/mask.h"
#include "cuda/tile.cuh"

namespace attn::cuda {

__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ PackCall p) {
  const int64_t at = thread_item(), words_in_row = (p.Lk + 63) / 64;
  if (at >= p.words_in_all) return;
  const int64_t first = at % words_in_row * 64;
  const bool* row = p.keep + at / words_in_row * p.Lk;
  uint64_t word = 0;
  for (int64_t j = first; j < min64(first + 64, p.Lk); ++j) word |= uint64_t{row[j]} << (j - first);
  p.words[at] = word;
}

__global__ void __launch_bounds__(kThreads) keep_kernel(const __grid_constant__ KeepCall p) {
  const int64_t at = thread_item(), groups = (p.Lk + 3) / 4;
  const int64_t group = at % groups, row = at / groups;
  if (row >= p.B * p.H * p.Lq) return;
  Dropout dropout = p.dropout;
  dropout.seed = static_cast<uint64_t>(*p.seed);
  const uint32_t bits = dropout.keep4(row / (p.H * p.Lq), row / p.Lq % p.H, row % p.Lq, group);
  for (int64_t j = 4 * group; j < min64(4 * group + 4, p.Lk); ++j)
    p.keep[row * p.Lk + j] = bits >> (j % 4) & 1;
}

void pack_mask_bits(const PackCall& p, Stream stream) {
  launch(pack_kernel, blocks_of_threads(p.words_in_all), kThreads, 0, stream, p);
}

void dropout_keep(const KeepCall& p, Stream stream) {
  launch(keep_kernel, blocks_of_threads(p.B * p.H * p.Lq * ((p.Lk + 3) / 4)), kThreads, 0, stream,
         p);
}

}  // namespace attn::cuda
