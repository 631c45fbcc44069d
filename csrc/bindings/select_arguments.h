// What select_blocks is given, checked and turned into SelectParams: the same on every device.
#pragma once

#include "bindings/tensor.h"
#include "core/select_params.h"

namespace attn {

struct SelectArguments {
  const Tensor &query, &key;
  const OptionalTensor& key_keep;
  int64_t block_size, query_block_size, top_k, initial_blocks, local_blocks;
  bool causal, share_heads;
  const std::vector<int64_t>& compressed;
  double scale;
};

// All but the result and the workspace.
void fill_select(const SelectArguments& a, SelectParams& p);

}  // namespace attn
