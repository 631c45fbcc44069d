// The memory of the kernels that look at attention: its maps, and the selection of blocks.
#include "attention_buffers.h"
#include "cuda/attention_map.h"
#include "cuda/select_blocks.h"

using cuda_emulation::Buffers;

template <>
void cuda_emulation::declare_buffers(const attn::cuda::AttentionMapCall& p) {
  Buffers buffers = attention_buffers(p);
  const int64_t weights[4] = {p.B, p.Hq, p.row_count, p.Lk};
  const int64_t binned[4] = {p.B, p.Hq, p.query_bins, p.key_bins};
  const int64_t columns[4] = {p.B, p.Hq, p.Lk, 1}, rows[4] = {p.B, p.Hq, p.Lq, 1};
  buffers.add("rows", p.rows, p.row_count * 8, false);
  buffers.add("weights", p.weights, weights, true);
  buffers.add("binned", p.binned, binned, true);
  buffers.add("column_sums", p.column_sums, columns, true);
  buffers.add("entropy", p.entropy, rows, true);
  buffers.add("bin_partial", p.bin_partial, p.B * p.Hq * p.bin_rows() * p.query_bins * 8, true);
  set_buffers(std::move(buffers.list));
}

template <>
void cuda_emulation::declare_buffers(const attn::cuda::SelectCall& p) {
  Buffers buffers;
  const int64_t element = p.query.dtype == attn::Dtype::kFloat64 ? 8 : 4;
  const int64_t query[4] = {p.B, p.Hq, p.Lq, p.D}, key[4] = {p.B, p.Hkv, p.keys, p.D};
  buffers.add("query", p.query, query, false);
  buffers.add("key", p.key, key, false);
  buffers.add("key_keep", p.keep, p.B * p.keys, false);
  buffers.add("indices", p.indices, p.B * p.heads() * p.rows() * p.top_k * 4, true);
  const int64_t summed[4] = {p.B, p.heads(), p.rows(), p.D},
                means[4] = {p.B, p.Hkv, p.columns, p.D};
  if (p.sums_queries()) buffers.add("summed queries", p.scored_query, summed, true);
  if (!p.compression) buffers.add("means", p.scored_key, means, true);
  buffers.add("kept keys", p.kept_keys, p.B * p.Hkv * p.columns * 4, true);
  const int64_t scores = p.B * p.score_heads() * p.row_count * p.columns;
  const int64_t of_blocks = p.B * p.heads() * p.row_count * p.blocks();
  buffers.add("scores", p.scores, scores * element, true);
  if (p.compression) buffers.add("block scores", p.block_scores, of_blocks * element, true);
  set_buffers(std::move(buffers.list));
}
