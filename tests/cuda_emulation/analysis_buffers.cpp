// The memory of the kernels that look at attention: its maps, the selection of blocks, and the
// table of those.
#include "attention_buffers.h"
#include "cuda/attention_map.h"
#include "cuda/select_blocks.h"
#include "cuda/selected_table.h"

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

template <>
void cuda_emulation::declare_buffers(const attn::cuda::SelectedTable& p) {
  Buffers buffers;
  const int64_t heads = p.lists * p.repeat, tiles = p.lists * p.tiles();
  const int64_t entries = p.lists * p.capacity() * int64_t{sizeof(attn::TableEntry)};
  buffers.add("indices", p.indices, p.lists * p.query_blocks() * p.per_row * 4, false);
  buffers.add("row_start", p.row_start, heads * (p.query_tiles() + 1) * 8, true);
  buffers.add("column_start", p.column_start, heads * (p.key_tiles() + 1) * 8, true);
  buffers.add("row_entries", p.row_entries, entries, true);
  buffers.add("column_entries", p.column_entries, entries, true);
  buffers.add("words", p.words, tiles * 8, true);
  if (p.cuts_tiles()) buffers.add("maps", p.maps, tiles * attn::kTableTile * 8, true);
  buffers.add("counts", p.counts, p.lists * (p.query_tiles() + p.key_tiles()) * 4, true);
  set_buffers(std::move(buffers.list));
}
