// The kernel table of one instruction set. A kernel is serial over one work item and knows neither
// torch nor threads: the caller runs items 0 .. items-1 in any order on any thread, each thread
// with scratch of its own.
#pragma once

#include <cstdint>

#include "core/linear_params.h"
#include "core/params.h"

namespace attn {

struct Plan {
  int64_t items = 0;
  int64_t scratch_bytes = 0;  // per thread, 64-byte aligned
};

template <class Params>
struct Kernel {
  Plan (*plan)(const Params&);
  void (*run)(const Params&, int64_t item, void* scratch);
};

struct Kernels {
  const char* name;
  // [0] computes in float (float32, bfloat16, float16 storage), [1] in double.
  Kernel<AttentionParams> attention_forward[2];
  // The plan first, then the three passes one after the other.
  GradPlan (*attention_backward_plan[2])(const AttentionGradParams&);
  Kernel<AttentionGradParams> attention_backward_rows[2];
  Kernel<AttentionGradParams> attention_backward[2];
  Kernel<AttentionGradParams> attention_backward_reduce[2];
  // Forward: three passes. Backward: the first two of them, then its own three, then the sums.
  Kernel<LinearParams> linear_states[2];
  Kernel<LinearParams> linear_scan[2];
  Kernel<LinearParams> linear_forward[2];
  Kernel<LinearParams> linear_step[2];
  Kernel<LinearGradParams> linear_grad_states[2];
  Kernel<LinearGradParams> linear_grad_scan[2];
  Kernel<LinearGradParams> linear_backward[2];
  Kernel<LinearGradParams> delta_backward[2];  // its forward pass is linear_forward
  Kernel<HeadSumParams> head_sum[2];
};

}  // namespace attn
