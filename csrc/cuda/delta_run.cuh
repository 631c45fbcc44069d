// The launches of one call of the delta rule.
#pragma once

#include "cuda/delta_backward.cuh"
#include "cuda/delta_decays.h"
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
    if (p.ddecay) delta_decay_grads(p, stream_);
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
    if (p.decay) delta_log_decays(p, stream_);
    launch_blocks(delta_inverse_kernel<Kind>, p.slots * p.Hs, sizeof(T) * kEdge * (kEdge + 1));
    launch_blocks(delta_states_kernel<Kind>, p.sequences * p.Hs * p.column_tiles());
  }
};

}  // namespace attn::cuda
