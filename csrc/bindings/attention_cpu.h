// The attention family on the CPU: what differs from other devices in its arguments, its kernels.
#pragma once

#include "bindings/attention_arguments.h"
#include "bindings/block_table.h"
#include "cpu/kernels.h"

namespace attn {

// All but results. A block table that has to be built lies in `built`, which must outlive the mask.
void fill_attention_on_cpu(const char* op, const AttentionArguments& a, AttentionParams& p,
                           BlockTableArrays& built);

const AttentionKernels& attention_kernels(const AttentionParams& p);

}  // namespace attn
