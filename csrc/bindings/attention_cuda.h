// The attention family for tensors on a CUDA device.
#pragma once

#include "bindings/attention_operators.h"

namespace attn::cuda {

struct AttentionOnCuda {
  static AttentionResults forward(const char* op, const AttentionArguments& a);
  static AttentionGradients backward(const char* op, const AttentionArguments& a,
                                     const AttentionGradArguments& g);
  static AttentionMapResults map(const char* op, const AttentionArguments& a,
                                 const OptionalTensor& rows, const std::vector<int64_t>& bins);
};

Tensor pack_mask_bits(const Tensor& keep);

Tensor dropout_keep(const Tensor& dropout_seed, double dropout_p, int64_t B, int64_t H, int64_t Lq,
                    int64_t Lk);

}  // namespace attn::cuda
