// The block_table argument on a device: a built table, whose arrays lie there and stay unread, or a
// mask program, whose table is built here on the CPU.
#pragma once

#include "bindings/tensor.h"

namespace attn {

// A program's arrays that lie on the device are copied, which waits for it. What had to be built
// lies in `built`, to be kept until the kernels are launched.
BlockTable device_table(const std::vector<Tensor>& block_table, int64_t B, int64_t Hq, int64_t Lq,
                        int64_t Lk, const Tensor& beside, std::vector<Tensor>& built);

}  // namespace attn
