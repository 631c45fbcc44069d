// The operators of linear attention with their schemas' arguments, on a backend: a class with
// forward, step and backward as in linear_calls.h.
#pragma once

#include "bindings/linear_calls.h"

namespace attn {

struct LinearOnCpu {
  static constexpr auto forward = linear_forward;
  static constexpr auto step = linear_step;
  static constexpr auto backward = linear_backward;
};

#define ATTN_LINEAR_PARAMETERS                                                                   \
  const Tensor &query, const Tensor &key, const Tensor &value, int64_t feature_map, bool causal, \
      const OptionalTensor &decay, double scale, bool normalize, double eps,                     \
      const OptionalTensor &key_lengths, const OptionalTensor &cu_seqlens,                       \
      const OptionalTensor &initial_state, const OptionalTensor &initial_normalizer
#define ATTN_LINEAR_ARGUMENTS                                                              \
  query, key, value, feature_map, causal, none, decay, scale, normalize, eps, key_lengths, \
      cu_seqlens, initial_state, initial_normalizer

template <class Backend>
struct LinearAttentionOperators {
  using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

  static Results attention(ATTN_LINEAR_PARAMETERS) {
    const OptionalTensor none;
    return Backend::forward("linear_attention", {ATTN_LINEAR_ARGUMENTS});
  }
  static Results forward(ATTN_LINEAR_PARAMETERS) {
    const OptionalTensor none;
    return Backend::forward("_linear_attention_forward", {ATTN_LINEAR_ARGUMENTS});
  }

  // The state is written to.
  static Tensor step(const Tensor& query, const Tensor& key, const Tensor& value,
                     const Tensor& state, const OptionalTensor& normalizer, int64_t feature_map,
                     const OptionalTensor& decay, double scale, bool normalize, double eps) {
    const OptionalTensor none, initial_state = state;
    return Backend::step("_linear_attention_step",
                         {query, key, value, feature_map, true, none, decay, scale, normalize, eps,
                          none, none, initial_state, normalizer});
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& grad_out, const OptionalTensor& grad_state,
      const OptionalTensor& grad_normalizer, ATTN_LINEAR_PARAMETERS, const Tensor& out,
      const Tensor& denominator, const std::vector<bool>& needs) {
    check(needs.size() == 6, "needs: expected 6 booleans, got ", needs.size());
    const OptionalTensor none;
    const std::vector<Tensor> g =
        Backend::backward("_linear_attention_backward", {ATTN_LINEAR_ARGUMENTS},
                          {grad_out, grad_state, grad_normalizer, out, denominator},
                          {needs[0], needs[1], needs[2], false, needs[3], needs[4], needs[5]});
    return {g[kQuery], g[kKey], g[kValue], g[kDecay], g[kState], g[kNormalizer]};
  }
};

#undef ATTN_LINEAR_PARAMETERS
#undef ATTN_LINEAR_ARGUMENTS

}  // namespace attn
