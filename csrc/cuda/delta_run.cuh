// The launches of one call of the delta rule.
#pragma once

#include "cuda/delta_backward.cuh"
#include "cuda/delta_decay_grads.cuh"
#include "cuda/delta_forward.cuh"
#include "cuda/delta_gradients.cuh"
#include "cuda/delta_workspace.h"

namespace attn::cuda {

template <class Kind>
class DeltaRun {
 public:
  DeltaRun(const DeltaCall& call, Stream stream) : p(call), stream_(stream) {}

  void forward() const {
    run_states();
    launch_blocks(delta_out_kernel<Kind>, p.slots * p.H * p.column_tiles());
  }

  void backward() const {
    run_states();
    launch_blocks(delta_read_grads_kernel<Kind>, p.slots * p.Hs * p.column_tiles());
    launch_blocks(delta_state_grads_kernel<Kind>, p.sequences * p.Hs * p.column_tiles());
    if (p.dquery || p.dkey || p.dvalue || p.ddecay)
      launch_blocks(delta_gradients_kernel<Kind>, p.slots * p.Hs * tiles_over(p.D, kEdge));
    if (p.dbeta) launch_blocks(delta_beta_kernel<Kind>, p.slots * p.Hs);
    if (!p.ddecay) return;
    using Decays = DeltaDecayGrads<T>;
    const int64_t tiles = p.channel_decay() ? tiles_over(p.D, Decays::kColumns) : 1;
    launch(delta_decay_grads_kernel<T>, p.slots * p.Hs * tiles, cuda::kThreads,
           sizeof(typename Decays::Memory), stream_, p);
  }

 private:
  using Block = DeltaBlock<Kind>;
  using T = typename Block::T;
  static constexpr int kEdge = Block::kEdge;

  const DeltaCall& p;
  Stream stream_;

  void launch_blocks(void (*kernel)(DeltaCall), int64_t blocks, size_t more_bytes = 0) const {
    launch(kernel, blocks, Block::kThreads, Block::kBytes + more_bytes, stream_, p);
  }
  void run_states() const {
    constexpr int kDecayThreads = 128;
    const int64_t decays = p.slots * p.Hs * p.decay_columns();
    launch(delta_decay_kernel<kDecayThreads>, tiles_over(decays, kDecayThreads), kDecayThreads, 0,
           stream_, p);
    launch_blocks(delta_inverse_kernel<Kind>, p.slots * p.Hs, sizeof(T) * kEdge * (kEdge + 1));
    launch_blocks(delta_states_kernel<Kind>, p.sequences * p.Hs * p.column_tiles());
  }
};

}  // namespace attn::cuda
