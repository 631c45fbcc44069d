// The block_table argument on a device: a built table, whose arrays lie there and stay unread.
#pragma once

#include "bindings/tensor.h"

namespace attn {

BlockTable device_table(const std::vector<Tensor>& block_table, int64_t B, int64_t Hq, int64_t Lq,
                        int64_t Lk, const Tensor& beside);

}  // namespace attn
