// What the operators of the attention family are given, checked and turned into AttentionParams:
// what is the same on every device.
#pragma once

#include "bindings/mask.h"
#include "bindings/tensor.h"

namespace attn {

struct AttentionArguments {
  const Tensor &query, &key, &value;
  MaskArguments mask;
  const OptionalTensor &bias, &sinks, &alibi_slopes;
  double scale, softcap, dropout_p;
  const OptionalTensor& dropout_seed;
};

// All but results, the block table and the dropout seed, which the CPU reads and a device keeps.
void fill_attention(const char* op, const AttentionArguments& a, AttentionParams& p);

// Where the seed lies, unread; null without dropout.
const int64_t* attention_seed(const AttentionArguments& a);

// A view of (H,) or (B, H) as (1 or B, H, 1, 1).
View head_view(const Tensor& t);

}  // namespace attn
