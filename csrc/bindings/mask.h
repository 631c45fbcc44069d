// The lowered mask of csrc/README.md, checked and turned into the kernels' Mask.
#pragma once

#include "bindings/tensor.h"

namespace attn {

// The schema text of the six mask arguments, in order.
#define ATTN_MASK_SCHEMA                                                                 \
  "SymInt[] band, Tensor? band_offset, Tensor? key_lengths, Tensor? mask_bits, Tensor? " \
  "row_bounds, "                                                                         \
  "Tensor[] block_table"

struct MaskArguments {
  const std::vector<int64_t>& band;
  const OptionalTensor& band_offset;
  const OptionalTensor& key_lengths;
  const OptionalTensor& mask_bits;
  const OptionalTensor& row_bounds;
  const std::vector<Tensor>& block_table;
};

// All but the block table, on query's device, where the values of offsets and lengths stay unread.
Mask checked_mask(const MaskArguments& arguments, int64_t B, int64_t Hq, int64_t Lq, int64_t Lk,
                  const Tensor& query);

// The values of offsets and lengths, on the CPU.
void check_mask_values(const Mask& mask, int64_t B);

}  // namespace attn
