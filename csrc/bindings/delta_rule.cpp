// attention_ext::delta_rule and the raw operators under it: schemas, and the CPU's.
#include "bindings/delta_operators.h"
#include "bindings/linear_operators.h"

#define ATTN_DELTA_SCHEMA                                                                     \
  "Tensor query, Tensor key, Tensor value, Tensor beta, Tensor? decay, float scale, Tensor? " \
  "key_lengths, Tensor? cu_seqlens, Tensor? initial_state"

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
  using DeltaRule = attn::DeltaRuleOperators<attn::LinearOnCpu>;
  m.impl("delta_rule", TORCH_BOX(&DeltaRule::rule));
  m.impl("_delta_rule_forward", TORCH_BOX(&DeltaRule::forward));
  m.impl("_delta_rule_step", TORCH_BOX(&DeltaRule::step));
  m.impl("_delta_rule_backward", TORCH_BOX(&DeltaRule::backward));
}
