// The operators of the delta rule with their schemas' arguments, on a backend: a class with
// forward, step and backward as in linear_calls.h.
#pragma once

#include "bindings/linear_calls.h"

namespace attn {

#define ATTN_DELTA_PARAMETERS                                                       \
  const Tensor &query, const Tensor &key, const Tensor &value, const Tensor &beta,  \
      const OptionalTensor &decay, double scale, const OptionalTensor &key_lengths, \
      const OptionalTensor &cu_seqlens, const OptionalTensor &initial_state
#define ATTN_DELTA_ARGUMENTS \
  query, key, value, some_beta, decay, scale, key_lengths, cu_seqlens, initial_state

template <class Backend>
struct DeltaRuleOperators {
  using Results = std::tuple<Tensor, Tensor>;

  static Results rule(ATTN_DELTA_PARAMETERS) {
    const OptionalTensor some_beta = beta;
    return results("delta_rule", call(ATTN_DELTA_ARGUMENTS));
  }
  static Results forward(ATTN_DELTA_PARAMETERS) {
    const OptionalTensor some_beta = beta;
    return results("_delta_rule_forward", call(ATTN_DELTA_ARGUMENTS));
  }

  // The state is written to.
  static Tensor step(const Tensor& query, const Tensor& key, const Tensor& value,
                     const Tensor& beta, const Tensor& state, const OptionalTensor& decay,
                     double scale) {
    const OptionalTensor none, some_beta = beta, initial_state = state;
    return Backend::step("_delta_rule_step", call(query, key, value, some_beta, decay, scale, none,
                                                  none, initial_state));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& grad_out, const OptionalTensor& grad_state, ATTN_DELTA_PARAMETERS,
      const Tensor& out, const std::vector<bool>& needs) {
    check(needs.size() == 6, "needs: expected 6 booleans, got ", needs.size());
    const OptionalTensor none, some_beta = beta;
    const std::vector<Tensor> g = Backend::backward(
        "_delta_rule_backward", call(ATTN_DELTA_ARGUMENTS), {grad_out, grad_state, none, out, out},
        {needs[0], needs[1], needs[2], needs[3], needs[4], needs[5], false});
    return {g[kQuery], g[kKey], g[kValue], g[kBeta], g[kDecay], g[kState]};
  }

 private:
  // The delta rule is causal linear attention of corrected values.
  static LinearArguments call(const Tensor& query, const Tensor& key, const Tensor& value,
                              const OptionalTensor& beta, const OptionalTensor& decay, double scale,
                              const OptionalTensor& key_lengths, const OptionalTensor& cu_seqlens,
                              const OptionalTensor& initial_state) {
    check(!decay || decay->dim() != 1, "decay: expected one for each token");
    static const OptionalTensor no_normalizer;
    constexpr auto kIdentity = static_cast<int64_t>(FeatureMap::kIdentity);
    return {query, key,   value, kIdentity,   true,       beta,          decay,
            scale, false, 0.0,   key_lengths, cu_seqlens, initial_state, no_normalizer};
  }
  static Results results(const char* op, const LinearArguments& a) {
    auto [out, denominator, state, normalizer] = Backend::forward(op, a);
    return {out, state};
  }
};

#undef ATTN_DELTA_PARAMETERS
#undef ATTN_DELTA_ARGUMENTS

}  // namespace attn
