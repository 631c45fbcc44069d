// Host code alone: the workspace of a call of the delta rule.
#pragma once

#include "cuda/delta_call.cuh"

namespace attn::cuda {

// A call whose workspace begins at `workspace`, and how many bytes it has. `gradients` is null in
// the forward pass.
struct DeltaPlan {
  DeltaCall call;
  size_t bytes = 0;

  DeltaPlan(const LinearParams& params, const LinearGradParams* gradients, void* workspace);
};

}  // namespace attn::cuda
