// attention_ext::delta_rule and the raw operators under it, on the CPU.
#include "bindings/linear_calls.h"

namespace attn {

namespace {

const OptionalTensor kNone;

#define ATTN_DELTA_PARAMETERS                                                       \
  const Tensor &query, const Tensor &key, const Tensor &value, const Tensor &beta,  \
      const OptionalTensor &decay, double scale, const OptionalTensor &key_lengths, \
      const OptionalTensor &cu_seqlens, const OptionalTensor &initial_state

// The delta rule is causal linear attention of corrected values.
LinearArguments arguments(const Tensor& query, const Tensor& key, const Tensor& value,
                          const OptionalTensor& beta, const OptionalTensor& decay, double scale,
                          const OptionalTensor& key_lengths, const OptionalTensor& cu_seqlens,
                          const OptionalTensor& initial_state) {
  check(!decay || decay->dim() != 1, "decay: expected one for each token");
  constexpr auto kIdentity = static_cast<int64_t>(FeatureMap::kIdentity);
  return {query, key,   value, kIdentity,   true,       beta,          decay,
          scale, false, 0.0,   key_lengths, cu_seqlens, initial_state, kNone};
}

std::tuple<Tensor, Tensor> forward(const char* op, const LinearArguments& a) {
  auto [out, denominator, state, normalizer] = linear_forward(op, a);
  return {out, state};
}

std::tuple<Tensor, Tensor> delta_rule(ATTN_DELTA_PARAMETERS) {
  const OptionalTensor some_beta = beta;
  return forward("delta_rule", arguments(query, key, value, some_beta, decay, scale, key_lengths,
                                         cu_seqlens, initial_state));
}
std::tuple<Tensor, Tensor> delta_rule_forward(ATTN_DELTA_PARAMETERS) {
  const OptionalTensor some_beta = beta;
  return forward("_delta_rule_forward", arguments(query, key, value, some_beta, decay, scale,
                                                  key_lengths, cu_seqlens, initial_state));
}

// The state is written to.
Tensor delta_rule_step(const Tensor& query, const Tensor& key, const Tensor& value,
                       const Tensor& beta, const Tensor& state, const OptionalTensor& decay,
                       double scale) {
  const OptionalTensor some_beta = beta, initial_state = state;
  return linear_step("_delta_rule_step", arguments(query, key, value, some_beta, decay, scale,
                                                   kNone, kNone, initial_state));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> delta_rule_backward(
    const Tensor& grad_out, const OptionalTensor& grad_state, ATTN_DELTA_PARAMETERS,
    const Tensor& out, const std::vector<bool>& needs) {
  check(needs.size() == 6, "needs: expected 6 booleans, got ", needs.size());
  const OptionalTensor some_beta = beta;
  const std::vector<Tensor> g = linear_backward(
      "_delta_rule_backward",
      arguments(query, key, value, some_beta, decay, scale, key_lengths, cu_seqlens, initial_state),
      {grad_out, grad_state, kNone, out, out},
      {needs[0], needs[1], needs[2], needs[3], needs[4], needs[5], false});
  return {g[kQuery], g[kKey], g[kValue], g[kBeta], g[kDecay], g[kState]};
}

#define ATTN_DELTA_SCHEMA                                                                     \
  "Tensor query, Tensor key, Tensor value, Tensor beta, Tensor? decay, float scale, Tensor? " \
  "key_lengths, Tensor? cu_seqlens, Tensor? initial_state"

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(attention_ext, m) {
  m.def("delta_rule(" ATTN_DELTA_SCHEMA ") -> (Tensor out, Tensor state)");
  m.def("_delta_rule_forward(" ATTN_DELTA_SCHEMA ") -> (Tensor out, Tensor state)");
  m.def(
      "_delta_rule_step(Tensor query, Tensor key, Tensor value, Tensor beta, Tensor(a!) state, "
      "Tensor? decay, float scale) -> Tensor");
  m.def("_delta_rule_backward(Tensor grad_out, Tensor? grad_state, " ATTN_DELTA_SCHEMA
        ", Tensor out, bool[] needs) -> (Tensor dquery, Tensor dkey, Tensor dvalue, Tensor dbeta, "
        "Tensor ddecay, Tensor dinitial_state)");
}

STABLE_TORCH_LIBRARY_IMPL(attention_ext, CPU, m) {
  m.impl("delta_rule", TORCH_BOX(&delta_rule));
  m.impl("_delta_rule_forward", TORCH_BOX(&delta_rule_forward));
  m.impl("_delta_rule_step", TORCH_BOX(&delta_rule_step));
  m.impl("_delta_rule_backward", TORCH_BOX(&delta_rule_backward));
}

}  // namespace attn
