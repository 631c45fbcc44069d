// What the operators of the attention family are given on the CPU, checked and turned into
// AttentionParams.
#pragma once

#include "bindings/mask.h"
#include "bindings/tensor.h"
#include "cpu/kernels.h"

namespace attn {

struct AttentionArguments {
  const Tensor &query, &key, &value;
  MaskArguments mask;
  const OptionalTensor &bias, &sinks, &alibi_slopes;
  double scale, softcap, dropout_p;
  const OptionalTensor& dropout_seed;
};

// All but results. A block table that has to be built lies in `built`, which must outlive the mask.
void fill_attention(const char* op, const AttentionArguments& a, AttentionParams& p,
                    BlockTableArrays& built);

const AttentionKernels& attention_kernels(const AttentionParams& p);

}  // namespace attn
