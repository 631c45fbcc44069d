// The kernel table of one instruction set. A kernel is serial over one work item and knows neither
// torch nor threads: the caller runs items 0 .. items-1 in any order on any thread, each thread
// with scratch of its own.
#pragma once

#include <cstdint>

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

struct AttentionKernels {
  Kernel<AttentionParams> forward;
  // The plan first, then the three passes one after the other.
  GradPlan (*backward_plan)(const AttentionGradParams&);
  Kernel<AttentionGradParams> backward_rows, backward, backward_reduce;
};

struct Kernels {
  const char* name;
  AttentionKernels attention[kDtypes];  // by storage dtype
};

}  // namespace attn
