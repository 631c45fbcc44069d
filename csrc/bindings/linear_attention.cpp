// attention_ext::linear_attention and the raw operators under it, on the CPU.
#include "bindings/linear_calls.h"

namespace attn {

namespace {

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

const OptionalTensor kNone;

#define ATTN_LINEAR_PARAMETERS                                                                   \
  const Tensor &query, const Tensor &key, const Tensor &value, int64_t feature_map, bool causal, \
      const OptionalTensor &decay, double scale, bool normalize, double eps,                     \
      const OptionalTensor &key_lengths, const OptionalTensor &cu_seqlens,                       \
      const OptionalTensor &initial_state, const OptionalTensor &initial_normalizer
#define ATTN_LINEAR_ARGUMENTS                                                               \
  query, key, value, feature_map, causal, kNone, decay, scale, normalize, eps, key_lengths, \
      cu_seqlens, initial_state, initial_normalizer

Results linear_attention(ATTN_LINEAR_PARAMETERS) {
  return linear_forward("linear_attention", {ATTN_LINEAR_ARGUMENTS});
}
Results linear_attention_forward(ATTN_LINEAR_PARAMETERS) {
  return linear_forward("_linear_attention_forward", {ATTN_LINEAR_ARGUMENTS});
}

// The state is written to.
Tensor linear_attention_step(const Tensor& query, const Tensor& key, const Tensor& value,
                             const Tensor& state, const OptionalTensor& normalizer,
                             int64_t feature_map, const OptionalTensor& decay, double scale,
                             bool normalize, double eps) {
  const OptionalTensor initial_state = state;
  return linear_step("_linear_attention_step",
                     {query, key, value, feature_map, true, kNone, decay, scale, normalize, eps,
                      kNone, kNone, initial_state, normalizer});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_attention_backward(
    const Tensor& grad_out, const OptionalTensor& grad_state, const OptionalTensor& grad_normalizer,
    ATTN_LINEAR_PARAMETERS, const Tensor& out, const Tensor& denominator,
    const std::vector<bool>& needs) {
  check(needs.size() == 6, "needs: expected 6 booleans, got ", needs.size());
  const std::vector<Tensor> g =
      linear_backward("_linear_attention_backward", {ATTN_LINEAR_ARGUMENTS},
                      {grad_out, grad_state, grad_normalizer, out, denominator},
                      {needs[0], needs[1], needs[2], false, needs[3], needs[4], needs[5]});
  return {g[kQuery], g[kKey], g[kValue], g[kDecay], g[kState], g[kNormalizer]};
}

#define ATTN_LINEAR_SCHEMA                                                                      \
  "Tensor query, Tensor key, Tensor value, int feature_map, bool causal, Tensor? decay, float " \
  "scale, bool normalize, float eps, Tensor? key_lengths, Tensor? cu_seqlens, Tensor? "         \
  "initial_state, Tensor? initial_normalizer"
#define ATTN_LINEAR_RESULTS " -> (Tensor out, Tensor denominator, Tensor state, Tensor normalizer)"

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(attention_ext, m) {
  m.def("linear_attention(" ATTN_LINEAR_SCHEMA ")" ATTN_LINEAR_RESULTS);
  m.def("_linear_attention_forward(" ATTN_LINEAR_SCHEMA ")" ATTN_LINEAR_RESULTS);
  m.def(
      "_linear_attention_step(Tensor query, Tensor key, Tensor value, Tensor(a!) state, "
      "Tensor(b!)? "
      "normalizer, int feature_map, Tensor? decay, float scale, bool normalize, float eps) -> "
      "Tensor");
  m.def(
      "_linear_attention_backward(Tensor grad_out, Tensor? grad_state, Tensor? "
      "grad_normalizer, " ATTN_LINEAR_SCHEMA
      ", Tensor out, Tensor denominator, bool[] needs) -> (Tensor dquery, Tensor dkey, Tensor "
      "dvalue, Tensor ddecay, Tensor dinitial_state, Tensor dinitial_normalizer)");
}

STABLE_TORCH_LIBRARY_IMPL(attention_ext, CPU, m) {
  m.impl("linear_attention", TORCH_BOX(&linear_attention));
  m.impl("_linear_attention_forward", TORCH_BOX(&linear_attention_forward));
  m.impl("_linear_attention_step", TORCH_BOX(&linear_attention_step));
  m.impl("_linear_attention_backward", TORCH_BOX(&linear_attention_backward));
}

}  // namespace attn
