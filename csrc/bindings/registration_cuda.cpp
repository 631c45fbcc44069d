#include "bindings/attention_cuda.h"
#include "bindings/block_table_cuda.h"
#include "bindings/delta_operators.h"
#include "bindings/linear_cuda.h"
#include "bindings/linear_operators.h"
#include "bindings/select_blocks_cuda.h"

STABLE_TORCH_LIBRARY_IMPL(attention_ext, CUDA, m) {
  using Attention = attn::AttentionOperators<attn::cuda::AttentionOnCuda>;
  m.impl("attention", TORCH_BOX(&Attention::attention));
  m.impl("_attention_forward", TORCH_BOX(&Attention::forward));
  m.impl("_attention_backward", TORCH_BOX(&Attention::backward));
  m.impl("attention_map", TORCH_BOX(&Attention::map));
  m.impl("_pack_mask_bits", TORCH_BOX(&attn::cuda::pack_mask_bits));
  m.impl("_dropout_keep", TORCH_BOX(&attn::cuda::dropout_keep));
  m.impl("select_blocks", TORCH_BOX(&attn::cuda::select_blocks));
  m.impl("_build_block_table", TORCH_BOX(&attn::cuda::build_block_table));
  using LinearAttention = attn::LinearAttentionOperators<attn::LinearOnCuda>;
  m.impl("linear_attention", TORCH_BOX(&LinearAttention::attention));
  m.impl("_linear_attention_forward", TORCH_BOX(&LinearAttention::forward));
  m.impl("_linear_attention_step", TORCH_BOX(&LinearAttention::step));
  m.impl("_linear_attention_backward", TORCH_BOX(&LinearAttention::backward));
  using DeltaRule = attn::DeltaRuleOperators<attn::LinearOnCuda>;
  m.impl("delta_rule", TORCH_BOX(&DeltaRule::rule));
  m.impl("_delta_rule_forward", TORCH_BOX(&DeltaRule::forward));
  m.impl("_delta_rule_step", TORCH_BOX(&DeltaRule::step));
  m.impl("_delta_rule_backward", TORCH_BOX(&DeltaRule::backward));
}
