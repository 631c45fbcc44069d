// What the delta rule's chunks need before any state is known, a chunk at a time: the inverse of
// the triangular system of its errors (the UT transform of Yang et al. 2024).
#pragma once

#include "cuda/delta_block.cuh"

namespace attn::cuda {

// A block owns a chunk of a state head. Each column of the inverse is solved for by neighbouring
// lanes, row after row.
template <class Kind>
__global__ void __launch_bounds__(Kind::Arithmetic::kThreads, 1)
    delta_inverse_kernel(const __grid_constant__ DeltaCall p) {
  if constexpr (!Kind::Arithmetic::kTensor || kTensorCores) {
    using Block = DeltaBlock<Kind>;
    using T = typename Block::T;
    constexpr int kEdge = Block::kEdge, kPitch = kEdge + 1, kLanes = Block::kThreads / kEdge;
    ATTN_SHARED(shared);
    T* inverse = reinterpret_cast<T*>(shared + Block::kBytes);
    DeltaItem item{blockIdx.x};
    Block block(p, item.take(p.Hs), shared);
    const DeltaChunk chunk = DeltaChunk::at(p, item.rest);
    if (chunk.live <= 0) return;
    block.enter(chunk);

    typename Block::Sum overlaps;
    block.weigh_keys(overlaps, [&](int64_t t, int64_t d) { return block.key(t, d); }, false);
    const auto stored = block.pairs(p.overlaps);
    block.products.for_each(overlaps, [&](int t, int s, T x) {
      if (p.overlaps && t < chunk.live) stored.at(t, s) = x;
      block.weight(t, s) = x * block.memory.betas[s];
    });

    const int column = static_cast<int>(threadIdx.x) / kLanes;
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    for (int t = 0; t < chunk.live; ++t) {
      T sum = 0;
      for (int s = column + lane; s < t; s += kLanes)
        sum += block.weight(t, s) * inverse[s * kPitch + column];
      ATTN_UNROLL
      for (int by = 1; by < kLanes; by *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, by);
      if (lane == 0) inverse[t * kPitch + column] = (t == column ? T(1) : T(0)) - sum;
      __syncwarp();
    }
    __syncthreads();
    const auto to = block.pairs(p.inverses);
    Block::for_elements(chunk.live, 0,
                        [&](int64_t t, int64_t s) { to.at(t, s) = inverse[t * kPitch + s]; });
  }
}

}  // namespace attn::cuda
