// The operator of bindings/select_blocks.cpp, with its schema, for tensors on a CUDA device.
#pragma once

#include "bindings/tensor.h"

namespace attn::cuda {

Tensor select_blocks(const Tensor& query, const Tensor& key, const OptionalTensor& key_keep,
                     int64_t block_size, int64_t query_block_size, int64_t top_k,
                     int64_t initial_blocks, int64_t local_blocks, bool causal, bool share_heads,
                     const std::vector<int64_t>& compressed, double scale);

}  // namespace attn::cuda
