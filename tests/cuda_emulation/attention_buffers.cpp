// Which memory the kernels may touch, from the parameters that they get.
#include <algorithm>

#include "attention_buffers.h"
#include "cuda/elementwise.h"

using cuda_emulation::Buffers;

Buffers attention_buffers(const attn::cuda::AttentionCall& p) {
  Buffers buffers;
  const bool backward = static_cast<bool>(p.grad_out);
  const int64_t query[4] = {p.B, p.Hq, p.Lq, p.D}, key[4] = {p.B, p.Hkv, p.Lk, p.D};
  const int64_t value[4] = {p.B, p.Hkv, p.Lk, p.Dv}, out[4] = {p.B, p.Hq, p.Lq, p.Dv};
  const int64_t row[4] = {p.B, p.Hq, p.Lq, 1}, pair[4] = {p.B, p.Hq, p.Lq, p.Lk};
  const int64_t head[4] = {p.B, p.Hq, 1, 1};
  buffers.add("query", p.query, query, false);
  buffers.add("key", p.key, key, false);
  buffers.add("value", p.value, value, false);
  buffers.add("out", p.out, out, !backward);
  buffers.add("lse", p.lse, row, !backward);
  buffers.add("bias", p.bias, pair, false);
  buffers.add("sinks", p.sinks, head, false);
  buffers.add("alibi_slopes", p.alibi_slopes, head, false);
  buffers.add("grad_out", p.grad_out, out, false);
  buffers.add("grad_lse", p.grad_lse, row, false);
  buffers.add("dq", p.dq, query, true);
  buffers.add("dk", p.dk, key, true);
  buffers.add("dv", p.dv, value, true);
  buffers.add("dbias", p.dbias, p.bias_size, true);
  const int64_t sinks[4] = {1, p.Hq, 1, 1}, slopes[4] = {p.alibi_per_batch ? p.B : 1, p.Hq, 1, 1};
  buffers.add("dsinks", p.dsinks, sinks, true);
  buffers.add("dalibi_slopes", p.dalibi_slopes, slopes, true);

  const attn::Mask& mask = p.mask;
  buffers.add("band_offset", mask.band_offset, p.B * 8, false);
  buffers.add("key_lengths", mask.key_lengths, p.B * 8, false);
  const int64_t words = (p.Lk + 63) / 64 + (p.B - 1) * mask.bits_stride_b +
                        (p.Hq - 1) * mask.bits_stride_h + (p.Lq - 1) * mask.bits_stride_q;
  buffers.add("mask_bits", mask.bits, words * 8, false);
  if (const attn::BlockTable& table = mask.table) {
    const int64_t lists = table.batches * table.heads;
    buffers.add("row_start", table.row_start, lists * (table.query_tiles + 1) * 8, false);
    buffers.add("column_start", table.column_start, lists * (table.key_tiles + 1) * 8, false);
    buffers.add("row_entries", table.row_entries, table.entry_count * 8, false);
    buffers.add("column_entries", table.column_entries, table.entry_count * 8, false);
    buffers.add("maps", table.maps, table.map_count * attn::kTableTile * 8, false);
  }
  buffers.add("dropout_seed", p.dropout_seed, 8, false);

  const int64_t rows = p.B * p.Hq * p.Lq, heads = p.B * p.Hq;
  const int64_t element = p.query.dtype == attn::Dtype::kFloat64 ? 8 : 4;
  buffers.add("row_lse", p.row_lse, 2 * rows * element, true);
  buffers.add("row_delta", p.row_delta, rows * element, true);
  buffers.add("sink_partial", p.sink_partial, heads * p.plan.row_blocks * 8, true);
  buffers.add("alibi_partial", p.alibi_partial, heads * p.plan.chunks * 8, true);
  const int64_t* size = p.bias_size;
  buffers.add("dbias_partial", p.dbias_partial,
              p.plan.bias_slots * size[0] * size[1] * size[2] * size[3] * element, true);
  buffers.add("split_out", p.split_out, p.splits.count * rows * p.Dv * element, true);
  buffers.add("split_lse", p.split_lse, p.splits.count * rows * element, true);
  return buffers;
}

template <>
void cuda_emulation::declare_buffers(const attn::cuda::AttentionCall& p) {
  set_buffers(attention_buffers(p).list);
}

template <>
void cuda_emulation::declare_buffers(const attn::cuda::PackCall& p) {
  const int64_t rows = p.words_in_all / std::max<int64_t>(1, (p.Lk + 63) / 64);
  Buffers buffers;
  buffers.add("keep", p.keep, rows * p.Lk, false);
  buffers.add("words", p.words, p.words_in_all * 8, true);
  set_buffers(std::move(buffers.list));
}

template <>
void cuda_emulation::declare_buffers(const attn::cuda::KeepCall& p) {
  Buffers buffers;
  buffers.add("seed", p.seed, 8, false);
  buffers.add("keep", p.keep, p.B * p.H * p.Lq * p.Lk, true);
  set_buffers(std::move(buffers.list));
}
