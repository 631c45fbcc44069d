#include "bindings/block_table.h"

#include "bindings/mask_program.h"
#include "bindings/threads.h"
#include "cpu/mask_leaves.h"

namespace attn {

namespace {

BlockTable table_of(const MaskProgram& program, int64_t Lq, int64_t Lk, BlockTableArrays& built) {
  if (program.is_table(Lq, Lk)) {
    const MaskArray* parts[5];
    for (size_t n = 0; n < 5; ++n) parts[n] = &program.arrays[n];
    return checked_table(parts, Lq, Lk);
  }
  built = program.build(Lq, Lk);
  return built.view();
}

std::vector<Tensor> build(const std::vector<Tensor>& block_table, int64_t Lq, int64_t Lk) {
  check(Lq >= 0 && Lk >= 0, "Lq, Lk: expected lengths of at least 0, got ", Lq, " and ", Lk);
  return table_tensors(read_program(block_table).build(Lq, Lk));
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
  const BlockTable table = table_of(read_program(block_table), Lq, Lk, built);
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
