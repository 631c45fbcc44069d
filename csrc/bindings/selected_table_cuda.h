// The table of chosen blocks of keys (masks.Selected), made on the device that chose them.
#pragma once

#include <optional>

#include "bindings/tensor.h"

namespace attn {

// row_start, row_entries, column_start, column_entries and maps of the program that stands for
// chosen blocks alone, whose values stay unread: an index that is no block is none. Nothing where
// block_table is something else, does not fit the lengths or `beside`'s device, or where the worst
// case of the table takes more than 4 GB: the CPU builds those, or says what is wrong with them.
std::optional<std::vector<Tensor>> selected_table(const std::vector<Tensor>& block_table,
                                                  int64_t Lq, int64_t Lk, const Tensor& beside);

}  // namespace attn
