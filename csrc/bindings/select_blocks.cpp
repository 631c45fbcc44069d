// attention_ext::select_blocks, and its kernels on the CPU.
#include "bindings/select_arguments.h"
#include "bindings/threads.h"
#include "cpu/dispatch.h"

namespace attn {

namespace {

// Lanes of the widest register in float: columns are padded to them.
constexpr int64_t kColumns = 16;

// int32 (B, Hkv or Hq, ceil(Lq / query_block_size), top_k), ascending, -1 behind the last
Tensor select_blocks(const Tensor& query, const Tensor& key, const OptionalTensor& key_keep,
                     int64_t block_size, int64_t query_block_size, int64_t top_k,
                     int64_t initial_blocks, int64_t local_blocks, bool causal, bool share_heads,
                     const std::vector<int64_t>& compressed, double scale) {
  SelectParams p;
  fill_select({query, key, key_keep, block_size, query_block_size, top_k, initial_blocks,
               local_blocks, causal, share_heads, compressed, scale},
              p);
  Tensor indices = empty({p.B, p.heads(), p.rows(), top_k}, ScalarType::Int);
  if (p.B == 0 || p.Hq == 0 || p.Lq == 0) return indices;
  p.indices = static_cast<int32_t*>(indices.data_ptr());
  p.columns = (p.scored() + kColumns - 1) / kColumns * kColumns;
  const ScalarType type = accumulator_of(query.scalar_type());
  const Tensor scored_keys = empty({p.B, p.Hkv, p.D, p.columns}, type);
  const Tensor scored_keep = empty({p.B, p.Hkv, p.columns}, ScalarType::Bool);
  p.scored_keys = scored_keys.data_ptr();
  p.scored_keep = static_cast<uint8_t*>(scored_keep.data_ptr());
  const SelectKernels& run = kernels().select[type == ScalarType::Double];
  run_items(run.keys, p);
  run_items(run.blocks, p);
  return indices;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(attention_ext, m) {
  m.def(
      "select_blocks(Tensor query, Tensor key, Tensor? key_keep, SymInt block_size, SymInt "
      "query_block_size, SymInt top_k, SymInt initial_blocks, SymInt local_blocks, bool causal, "
      "bool share_heads, SymInt[] compressed, float scale) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(attention_ext, CPU, m) {
  m.impl("select_blocks", TORCH_BOX(&select_blocks));
}

}  // namespace attn
