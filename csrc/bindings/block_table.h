// The block_table argument of csrc/README.md: a mask program and its arrays, lowered where it is
// not a table yet.
#pragma once

#include "bindings/tensor.h"
#include "cpu/block_table_builder.h"

namespace attn {

// The table of the program, for B, Hq, Lq, Lk; what had to be built lies in `built`. The arrays
// must outlive both.
BlockTable lowered_table(const std::vector<Tensor>& block_table, int64_t B, int64_t Hq, int64_t Lq,
                         int64_t Lk, BlockTableArrays& built);

}  // namespace attn
