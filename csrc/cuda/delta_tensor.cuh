// The delta rule on tensor cores, to be instantiated for float16 and bfloat16.
#pragma once

#include "cuda/delta.h"
#include "cuda/delta_run.cuh"

namespace attn::cuda {

template <Dtype kDtype>
bool has_delta_code() {
  return architecture_of(delta_inverse_kernel<DeltaTensor<kDtype>>) >= 80;
}

template <Dtype kDtype>
bool delta_tensor_forward(const LinearParams& params, void* workspace, Stream stream) {
  if (!has_delta_code<kDtype>()) return false;
  const DeltaPlan plan(params, nullptr, workspace);
  DeltaRun<DeltaTensor<kDtype>>(plan.call, stream).forward();
  return true;
}

template <Dtype kDtype>
bool delta_tensor_backward(const LinearGradParams& params, void* workspace, Stream stream) {
  if (!has_delta_code<kDtype>()) return false;
  const DeltaPlan plan(params, &params, workspace);
  DeltaRun<DeltaTensor<kDtype>>(plan.call, stream).backward();
  return true;
}

}  // namespace attn::cuda
