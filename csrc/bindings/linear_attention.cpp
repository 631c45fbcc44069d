// attention_ext::linear_attention and the raw operators under it, on the CPU.
#include "bindings/linear_operators.h"

namespace attn {

namespace {

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
  using Operators = LinearAttentionOperators<LinearOnCpu>;
  m.impl("linear_attention", TORCH_BOX(&Operators::attention));
  m.impl("_linear_attention_forward", TORCH_BOX(&Operators::forward));
  m.impl("_linear_attention_step", TORCH_BOX(&Operators::step));
  m.impl("_linear_attention_backward", TORCH_BOX(&Operators::backward));
}

}  // namespace attn
