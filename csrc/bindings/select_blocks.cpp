// attention_ext::select_blocks on the CPU.
#include "bindings/threads.h"
#include "cpu/dispatch.h"

namespace attn {

namespace {

// Lanes of the widest register in float: columns are padded to them.
constexpr int64_t kColumns = 16;

void check_tensors(const Tensor& query, const Tensor& key) {
  for (const auto& [name, t] : {std::pair("query", &query), std::pair("key", &key)})
    check(t->is_cpu() && t->dim() == 4 && is_floating(t->scalar_type()), name,
          ": expected float32, float64, bfloat16 or float16 of four dimensions on the CPU, got ",
          describe(*t));
  check(key.scalar_type() == query.scalar_type(), "key: expected the dtype of query, got ",
        describe(key));
  check(key.size(0) == query.size(0) && key.size(3) == query.size(3) && key.size(3) > 0,
        "key: expected the batch size and head dimension of query, ", describe(query), ", got ",
        describe(key));
  const int64_t Hq = query.size(1), Hkv = key.size(1);
  check(Hkv == 0 ? Hq == 0 : Hq % Hkv == 0, "key: expected a number of heads that divides query's ",
        Hq, ", got ", describe(key));
}

const uint8_t* checked_keep(const OptionalTensor& keep, const Tensor& key) {
  if (!keep) return nullptr;
  check(keep->is_cpu() && keep->scalar_type() == ScalarType::Bool && keep->dim() == 2 &&
            keep->size(0) == key.size(0) && keep->size(1) == key.size(2) && keep->is_contiguous(),
        "key_keep: expected contiguous bool of shape (", key.size(0), ", ", key.size(2),
        ") on the CPU, got ", describe(*keep));
  return static_cast<const uint8_t*>(keep->data_ptr());
}

void check_numbers(const SelectParams& p) {
  constexpr int64_t kMost = int64_t{1} << 31;
  const auto positive = [](const char* name, int64_t n) {
    check(0 < n && n < kMost, name, ": expected a positive number below 2**31, got ", n);
  };
  positive("block_size", p.block);
  positive("query_block_size", p.query_block);
  positive("top_k", p.top_k);
  check(p.initial >= 0 && p.initial <= p.top_k, "initial_blocks: expected 0 to top_k ", p.top_k,
        ", got ", p.initial);
  check(p.local >= (p.causal ? 1 : 0) && p.local <= p.top_k - p.initial, "local_blocks: expected ",
        p.causal ? 1 : 0, " to top_k - initial_blocks ", p.top_k - p.initial, ", got ", p.local);
  check(!p.causal || p.query_block == 1, "query_block_size: expected 1 with causal, got ",
        p.query_block);
}

void check_compression(const SelectParams& p) {
  const auto& [length, stride] = p.compression;
  check(stride > 0 && length >= stride && length % stride == 0 && p.block % stride == 0,
        "compressed: expected a stride that divides the length and block_size ", p.block, ", got ",
        length, " and ", stride);
  check(p.positions >= 0 && p.keys == p.compression.seen_from(p.positions - 1),
        "compressed: expected ", p.compression.seen_from(p.positions - 1), " keys for ",
        p.positions, " positions, got ", p.keys);
  check(p.query_block == 1, "query_block_size: expected 1 with compressed keys, got ",
        p.query_block);
}

// int32 (B, Hkv or Hq, ceil(Lq / query_block_size), top_k), ascending, -1 behind the last
Tensor select_blocks(const Tensor& query, const Tensor& key, const OptionalTensor& key_keep,
                     int64_t block_size, int64_t query_block_size, int64_t top_k,
                     int64_t initial_blocks, int64_t local_blocks, bool causal, bool share_heads,
                     const std::vector<int64_t>& compressed, double scale) {
  check_tensors(query, key);
  SelectParams p;
  p.B = query.size(0), p.Hq = query.size(1), p.Lq = query.size(2), p.D = query.size(3);
  p.Hkv = key.size(1), p.keys = p.positions = key.size(2);
  p.query = view_of(query), p.key = view_of(key);
  p.keep = checked_keep(key_keep, key);
  p.block = block_size, p.query_block = query_block_size, p.top_k = top_k;
  p.initial = initial_blocks, p.local = local_blocks;
  p.causal = causal, p.share_heads = share_heads, p.scale = scale;
  check_numbers(p);
  if (!compressed.empty()) {
    check(compressed.size() == 3, "compressed: expected 0 or 3 integers, got ", compressed.size());
    p.compression = {compressed[0], compressed[1]};
    p.positions = compressed[2];
    check_compression(p);
  }
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
