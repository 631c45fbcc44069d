#include "bindings/block_table.h"

#include <cstring>

#include "bindings/threads.h"
#include "cpu/mask_leaves.h"

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

struct Program {
  std::vector<int64_t> code;
  std::vector<MaskArray> arrays;
};

Program program_of(const std::vector<Tensor>& block_table) {
  Program program;
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

// What a program that is one stored table, and nothing else, says: code, five arrays, lengths.
bool is_table(const Program& program, int64_t Lq, int64_t Lk) {
  const std::vector<int64_t> expected{kTableProgram, 0, 1, 2, 3, 4, Lq, Lk};
  return program.code == expected && program.arrays.size() == 5;
}

BlockTable table_of(const Program& program, int64_t Lq, int64_t Lk, BlockTableArrays& built) {
  if (is_table(program, Lq, Lk)) {
    const MaskArray* parts[5];
    for (size_t n = 0; n < 5; ++n) parts[n] = &program.arrays[n];
    return checked_table(parts, Lq, Lk);
  }
  built = build_block_table(*read_mask_program(program.code, program.arrays), Lq, Lk);
  return built.view();
}

template <class T>
Tensor tensor_of(const std::vector<T>& values, const std::vector<int64_t>& sizes, ScalarType type) {
  Tensor t = empty(sizes, type);
  if (!values.empty()) memcpy(t.data_ptr(), values.data(), values.size() * sizeof(T));
  return t;
}

// row_start, row_entries, column_start, column_entries, maps
std::vector<Tensor> build(const std::vector<Tensor>& block_table, int64_t Lq, int64_t Lk) {
  check(Lq >= 0 && Lk >= 0, "Lq, Lk: expected lengths of at least 0, got ", Lq, " and ", Lk);
  const Program program = program_of(block_table);
  const BlockTableArrays t =
      build_block_table(*read_mask_program(program.code, program.arrays), Lq, Lk);
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

// bool (B, Hq, Lq, Lk)
Tensor dense(const std::vector<Tensor>& block_table, int64_t B, int64_t Hq, int64_t Lq,
             int64_t Lk) {
  check(B >= 0 && Hq >= 0 && Lq >= 0 && Lk >= 0, "B, Hq, Lq, Lk: expected sizes of at least 0");
  BlockTableArrays built;
  const BlockTable table = lowered_table(block_table, B, Hq, Lq, Lk, built);
  Tensor keep = empty({B, Hq, Lq, Lk}, ScalarType::Bool);
  uint8_t* data = static_cast<uint8_t*>(keep.data_ptr());
  for (int64_t n = 0; n < B * Hq; ++n)
    dense_block_table(table, n / Hq, n % Hq, Lq, Lk, data + n * Lq * Lk);
  return keep;
}

}  // namespace

BlockTable lowered_table(const std::vector<Tensor>& block_table, int64_t B, int64_t Hq, int64_t Lq,
                         int64_t Lk, BlockTableArrays& built) {
  const BlockTable table = table_of(program_of(block_table), Lq, Lk, built);
  check((table.batches == B || table.batches == 1) && (table.heads == Hq || table.heads == 1),
        "mask: expected batch size ", B, " or 1 and ", Hq, " heads or 1, got ", table.batches,
        " and ", table.heads);
  return table;
}

STABLE_TORCH_LIBRARY_FRAGMENT(attention_ext, m) {
  m.def("_build_block_table(Tensor[] block_table, SymInt Lq, SymInt Lk) -> Tensor[]");
  m.def(
      "_dense_block_table(Tensor[] block_table, SymInt B, SymInt Hq, SymInt Lq, SymInt Lk) -> "
      "Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(attention_ext, CPU, m) {
  m.impl("_build_block_table", TORCH_BOX(&build));
  m.impl("_dense_block_table", TORCH_BOX(&dense));
}

}  // namespace attn
