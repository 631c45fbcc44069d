// Linear attention of 16-bit elements on tensor cores.
#pragma once

#include "cuda/linear_backward.cuh"

namespace attn::cuda {

template <Dtype kDtype>
bool has_linear_tensor_code() {
  return architecture_of(linear_outputs_kernel<TensorArithmetic<kDtype>, false>) >= 80;
}

template <Dtype kDtype>
bool linear_tensor_forward(const LinearCall& p, Stream stream) {
  if (!has_linear_tensor_code<kDtype>()) return false;
  linear_forward_on<TensorArithmetic<kDtype>>(p, stream);
  return true;
}

template <Dtype kDtype>
bool linear_tensor_backward(const LinearCall& p, Stream stream) {
  if (!has_linear_tensor_code<kDtype>()) return false;
  linear_backward_on<TensorArithmetic<kDtype>>(p, stream);
  return true;
}

}  // namespace attn::cuda
