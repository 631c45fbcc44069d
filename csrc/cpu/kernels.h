// The kernel table of one instruction set. A kernel is serial over one work item and knows neither
// torch nor threads: the caller runs items 0 .. items-1 in any order on any thread, each thread
// with scratch of its own.
#pragma once

#include <cstdint>

#include "core/linear_params.h"
#include "core/params.h"
#include "core/select_params.h"

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

// After the forward pass, without values: the number of chunks, then the passes.
struct AttentionMapKernels {
  int64_t (*chunks)(const AttentionMapParams&);
  Kernel<AttentionMapParams> rows, tiles, reduce;
};

struct AttentionKernels {
  Kernel<AttentionParams> forward;
  // The plan first, then the three passes one after the other.
  GradPlan (*backward_plan)(const AttentionGradParams&);
  Kernel<AttentionGradParams> backward_rows, backward, backward_reduce;
  AttentionMapKernels map;
};

// Linear attention and the delta rule. Forward: three passes, of the delta rule the last one alone.
// Backward: the first two of them, then its own three, then the sums over heads that share an
// input.
struct LinearKernels {
  Kernel<LinearParams> states, scan, forward, step;
  Kernel<LinearGradParams> grad_states, grad_scan, backward;
  Kernel<LinearGradParams> delta_states, delta_grad_states, delta_backward;
  Kernel<HeadSumParams> head_sum;
};

// One after the other.
struct SelectKernels {
  Kernel<SelectParams> keys, blocks;
};

struct Kernels {
  const char* name;
  AttentionKernels attention[kDtypes];  // by storage dtype
  LinearKernels linear[2];              // computes in float, in double
  SelectKernels select[2];              // the same
};

}  // namespace attn
