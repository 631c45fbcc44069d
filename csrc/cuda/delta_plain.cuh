// The delta rule without tensor cores, to be instantiated for float and double.
#pragma once

#include "cuda/delta.h"
#include "cuda/delta_run.cuh"
#include "cuda/delta_step.cuh"

namespace attn::cuda {

template <class T>
void delta_plain_forward(const LinearParams& params, void* workspace, Stream stream) {
  const DeltaPlan plan(params, nullptr, workspace);
  DeltaRun<DeltaPlain<T>>(plan.call, stream).forward();
}

template <class T>
void delta_plain_backward(const LinearGradParams& params, void* workspace, Stream stream) {
  const DeltaPlan plan(params, &params, workspace);
  DeltaRun<DeltaPlain<T>>(plan.call, stream).backward();
}

template <class T>
void delta_plain_step(const LinearParams& params, Stream stream) {
  const int64_t tiles = tiles_over(params.Dv, DeltaStepBlock<T>::kColumns);
  launch(delta_step_kernel<T>, params.sequences * params.Hs * tiles, kThreads, kThreads * sizeof(T),
         stream, DeltaStep{params});
}

}  // namespace attn::cuda
