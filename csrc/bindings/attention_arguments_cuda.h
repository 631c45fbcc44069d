// The arguments of the attention family on a CUDA device, where all they point to stays unread:
// kernels clamp lengths, and no offset leads them outside.
#pragma once

#include "bindings/attention_arguments.h"

namespace attn::cuda {

// All but results and the dropout seed. Returns the block table's arrays where it was built here:
// to be kept until the kernels are launched.
[[nodiscard]] std::vector<Tensor> fill_attention_on_device(const char* op,
                                                           const AttentionArguments& a,
                                                           AttentionParams& p);

}  // namespace attn::cuda
