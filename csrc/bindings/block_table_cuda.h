// The block_table argument on a device: a built table, whose arrays lie there and stay unread, or a
// mask program, whose table is made here: of chosen blocks on the device, of all else on the CPU.
#pragma once

#include "bindings/tensor.h"

namespace attn {

// A program that the CPU lowers has its arrays copied, which waits for the device. What was made
// lies in `built`, to be kept until the kernels are launched.
BlockTable device_table(const std::vector<Tensor>& block_table, int64_t B, int64_t Hq, int64_t Lq,
                        int64_t Lk, const Tensor& beside, std::vector<Tensor>& built);

namespace cuda {
// The operator of bindings/block_table.cpp, for a program with arrays on a device.
std::vector<Tensor> build_block_table(const std::vector<Tensor>& block_table, int64_t Lq,
                                      int64_t Lk);
}  // namespace cuda

}  // namespace attn
