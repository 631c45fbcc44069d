// Mask programs and built tables as tensors on the CPU: the block_table argument of csrc/README.md.
#pragma once

#include "bindings/tensor.h"
#include "cpu/block_table_builder.h"

namespace attn {

// A program refers to the memory of the tensors it was read from.
struct MaskProgram {
  std::vector<int64_t> code;
  std::vector<MaskArray> arrays;

  // One stored table for these lengths and nothing else: code, five arrays, lengths.
  bool is_table(int64_t Lq, int64_t Lk) const;
  BlockTableArrays build(int64_t Lq, int64_t Lk) const;
};

MaskProgram read_program(const std::vector<Tensor>& block_table);

// row_start, row_entries, column_start, column_entries, maps
std::vector<Tensor> table_tensors(const BlockTableArrays& table);

}  // namespace attn
