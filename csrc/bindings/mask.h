// The lowered mask of csrc/README.md, checked and turned into the kernels' Mask.
#pragma once

#include "bindings/block_table.h"

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

// A block table that has to be built lies in `built`, which must outlive the mask.
Mask checked_mask(const MaskArguments& arguments, int64_t B, int64_t Hq, int64_t Lq, int64_t Lk,
                  BlockTableArrays& built);

}  // namespace attn
