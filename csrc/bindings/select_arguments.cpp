#include "bindings/select_arguments.h"

namespace attn {

namespace {

void check_tensors(const Tensor& query, const Tensor& key) {
  for (const auto& [name, t] : {std::pair("query", &query), std::pair("key", &key)})
    check(on_same_device(*t, query) && t->dim() == 4 && is_floating(t->scalar_type()), name,
          ": expected float32, float64, bfloat16 or float16 of four dimensions ", place_of(query),
          ", got ", describe(*t));
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
  check(on_same_device(*keep, key) && keep->scalar_type() == ScalarType::Bool && keep->dim() == 2 &&
            keep->size(0) == key.size(0) && keep->size(1) == key.size(2) && keep->is_contiguous(),
        "key_keep: expected contiguous bool of shape (", key.size(0), ", ", key.size(2), ") ",
        place_of(key), ", got ", describe(*keep));
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

}  // namespace

void fill_select(const SelectArguments& a, SelectParams& p) {
  check_tensors(a.query, a.key);
  p.B = a.query.size(0), p.Hq = a.query.size(1), p.Lq = a.query.size(2), p.D = a.query.size(3);
  p.Hkv = a.key.size(1), p.keys = p.positions = a.key.size(2);
  p.query = view_of(a.query), p.key = view_of(a.key);
  p.keep = checked_keep(a.key_keep, a.key);
  p.block = a.block_size, p.query_block = a.query_block_size, p.top_k = a.top_k;
  p.initial = a.initial_blocks, p.local = a.local_blocks;
  p.causal = a.causal, p.share_heads = a.share_heads, p.scale = a.scale;
  check_numbers(p);
  if (a.compressed.empty()) return;
  check(a.compressed.size() == 3, "compressed: expected 0 or 3 integers, got ",
        a.compressed.size());
  p.compression = {a.compressed[0], a.compressed[1]};
  p.positions = a.compressed[2];
  check_compression(p);
}

}  // namespace attn
