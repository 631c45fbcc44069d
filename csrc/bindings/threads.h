// Work items on torch's thread pool.
#pragma once

#include <algorithm>
#include <atomic>

#include "bindings/tensor.h"
#include "cpu/arena.h"
#include "cpu/kernels.h"

namespace attn {

// Runs every item of a kernel. Threads take the next item as they come free, so that the heavy
// ones, which come first, even out; which thread runs an item has no influence on its result.
template <class Params>
void run_items(const Kernel<Params>& kernel, const Params& params) {
  const Plan plan = kernel.plan(params);
  const int64_t threads = std::min<int64_t>(plan.items, torch::stable::get_num_threads());
  constexpr int64_t kSmall = 32768;
  if (threads <= 1 && plan.scratch_bytes <= kSmall) {
    alignas(Arena::kAlign) char scratch[kSmall];
    for (int64_t item = 0; item < plan.items; ++item) kernel.run(params, item, scratch);
    return;
  }
  const int64_t scratch_bytes = std::max<int64_t>(plan.scratch_bytes, 1);
  const Tensor scratch = empty({threads, scratch_bytes}, ScalarType::Byte);
  char* base = static_cast<char*>(scratch.data_ptr());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t) {
    for (int64_t item; (item = next++) < plan.items;)
      kernel.run(params, item, base + begin * scratch_bytes);
  });
}

}  // namespace attn
