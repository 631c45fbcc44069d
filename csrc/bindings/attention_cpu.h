// The attention family on the CPU: what differs from other devices in its arguments, its kernels.
#pragma once

#include "bindings/attention_operators.h"
#include "bindings/block_table.h"
#include "cpu/kernels.h"

namespace attn {

// All but results. A block table that has to be built lies in `built`, which must outlive the mask.
void fill_attention_on_cpu(const char* op, const AttentionArguments& a, AttentionParams& p,
                           BlockTableArrays& built);

const AttentionKernels& attention_kernels(const AttentionParams& p);

struct AttentionOnCpu {
  static AttentionResults forward(const char* op, const AttentionArguments& a);
  static AttentionGradients backward(const char* op, const AttentionArguments& a,
                                     const AttentionGradArguments& g);
  static AttentionMapResults map(const char* op, const AttentionArguments& a,
                                 const OptionalTensor& rows, const std::vector<int64_t>& bins);
};

}  // namespace attn
