// Linear attention and the delta rule for tensors on a CUDA device.
#pragma once

#include "bindings/linear_calls.h"

namespace attn::cuda {

// As those of linear_calls.h.
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_forward(const char* op, const LinearArguments& a);
Tensor linear_step(const char* op, const LinearArguments& a);
std::vector<Tensor> linear_backward(const char* op, const LinearArguments& a,
                                    const LinearGradArguments& g,
                                    const std::array<bool, kLinearGradients>& needs);

}  // namespace attn::cuda

namespace attn {

struct LinearOnCuda {
  static constexpr auto forward = cuda::linear_forward;
  static constexpr auto step = cuda::linear_step;
  static constexpr auto backward = cuda::linear_backward;
};

}  // namespace attn
