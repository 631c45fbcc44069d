#include "bindings/mask_program.h"

#include <cstring>

namespace attn {

namespace {

MaskArray array_of(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  check(t.is_cpu() && t.is_contiguous() &&
            (type == ScalarType::Long || type == ScalarType::Bool || type == ScalarType::Int),
        "block_table: expected contiguous tensors of int64, int32 or bool on the CPU, got ",
        describe(t));
  MaskArray array;
  array.type = type == ScalarType::Long   ? MaskArray::Type::kInt64
               : type == ScalarType::Bool ? MaskArray::Type::kBool
                                          : MaskArray::Type::kInt32;
  array.data = t.data_ptr();
  const auto sizes = t.sizes();
  array.sizes.assign(sizes.begin(), sizes.end());
  return array;
}

template <class T>
Tensor tensor_of(const std::vector<T>& values, const std::vector<int64_t>& sizes, ScalarType type) {
  Tensor t = empty(sizes, type);
  if (!values.empty()) memcpy(t.data_ptr(), values.data(), values.size() * sizeof(T));
  return t;
}

}  // namespace

MaskProgram read_program(const std::vector<Tensor>& block_table) {
  MaskProgram program;
  check(!block_table.empty(), "block_table: expected a mask program, got no tensors");
  const MaskArray code = array_of(block_table[0]);
  check(code.type == MaskArray::Type::kInt64 && code.sizes.size() == 1,
        "block_table: expected a mask program in int64 of one dimension, got ",
        describe(block_table[0]));
  const int64_t* first = static_cast<const int64_t*>(code.data);
  program.code.assign(first, first + code.sizes[0]);
  for (size_t n = 1; n < block_table.size(); ++n)
    program.arrays.push_back(array_of(block_table[n]));
  return program;
}

bool MaskProgram::is_table(int64_t Lq, int64_t Lk) const {
  const std::vector<int64_t> expected{kTableProgram, 0, 1, 2, 3, 4, Lq, Lk};
  return code == expected && arrays.size() == 5;
}

BlockTableArrays MaskProgram::build(int64_t Lq, int64_t Lk) const {
  return build_block_table(*read_mask_program(code, arrays), Lq, Lk);
}

std::vector<Tensor> table_tensors(const BlockTableArrays& t) {
  const auto entries = [](const std::vector<TableEntry>& list) {
    return tensor_of(list, {static_cast<int64_t>(list.size()), 2}, ScalarType::Int);
  };
  return {tensor_of(t.row_start, {t.batches, t.heads, t.query_tiles + 1}, ScalarType::Long),
          entries(t.row_entries),
          tensor_of(t.column_start, {t.batches, t.heads, t.key_tiles + 1}, ScalarType::Long),
          entries(t.column_entries),
          tensor_of(t.maps, {static_cast<int64_t>(t.maps.size()) / kTableTile, kTableTile},
                    ScalarType::Long)};
}

}  // namespace attn
