// One call of linear attention or the delta rule, forward, backward or of one token.
#pragma once

#include <tuple>

#include "bindings/linear_arguments.h"

namespace attn {

// out, denominator, state, normalizer; the second and the last are empty without normalize.
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_forward(const char* op, const LinearArguments& a);

// One token; initial_state and initial_normalizer are written to.
Tensor linear_step(const char* op, const LinearArguments& a);

struct LinearGradArguments {
  const Tensor& grad_out;
  const OptionalTensor &grad_state, &grad_normalizer;
  const Tensor &out, &denominator;
};

enum LinearGradient { kQuery, kKey, kValue, kBeta, kDecay, kState, kNormalizer, kLinearGradients };

// One tensor for each LinearGradient, empty where it is not needed or there is no such argument.
std::vector<Tensor> linear_backward(const char* op, const LinearArguments& a,
                                    const LinearGradArguments& g,
                                    const std::array<bool, kLinearGradients>& needs);

}  // namespace attn
