// Which memory the kernels of linear attention may touch, from the parameters that they get.
#include <algorithm>

#include "buffers.h"
#include "cuda/linear_rows.cuh"
#include "cuda/linear_states.cuh"

namespace {

using attn::View;
using attn::cuda::LinearCall;
using cuda_emulation::Buffers;

Buffers buffers_of(const LinearCall& p) {
  Buffers buffers;
  const bool backward = static_cast<bool>(p.grad_out);
  const int64_t n = p.sequences, element = p.query.dtype == attn::Dtype::kFloat64 ? 8 : 4;
  const int64_t query[4] = {p.B, p.Hq, p.Lq, p.D}, key[4] = {p.B, p.Hk, p.Lk, p.D};
  const int64_t value[4] = {p.B, p.Hv, p.Lk, p.Dv}, out[4] = {p.B, p.H, p.Lq, p.Dv};
  const int64_t row[4] = {p.B, p.H, p.Lq, 1};
  const int64_t state[4] = {n, p.Hs, p.D, p.Dv}, z[4] = {n, p.Hs, 1, p.D};
  const int64_t decay[4] = {p.B, p.Hs, p.Lk, p.channel_decay() ? p.D : 1};
  buffers.add("query", p.query, query, false);
  buffers.add("key", p.key, key, false);
  buffers.add("value", p.value, value, false);
  buffers.add("decay", p.decay, decay, false);
  buffers.add("out", p.out, out, !backward);
  buffers.add("denominator", p.denominator, row, !backward);
  const bool step = p.initial && !p.state && !backward;
  buffers.add("initial", p.initial, state, step);
  buffers.add("initial_z", p.initial_z, z, step);
  buffers.add("state", p.state, state, true);
  buffers.add("state_z", p.state_z, z, true);
  buffers.add("key_lengths", p.key_lengths, p.B * 8, false);
  buffers.add("cu_seqlens", p.cu_seqlens, (n + 1) * 8, false);

  const int64_t chunks = p.causal ? p.chunks_of(p.Lk) : n;
  const int64_t states = chunks * p.Hs * p.chunk_state_size() * element;
  const int64_t parts = n * p.Hs * p.parts * p.state_size() * element;
  buffers.add("chunk_states", p.chunk_states, states, true);
  buffers.add("part_states", p.part_states, parts, true);
  buffers.add("chunk_grads", p.chunk_grads, states, true);
  buffers.add("part_grads", p.part_grads, parts, true);

  const int64_t rows = p.B * p.H * p.Lq * element;
  const int64_t terms = p.channel_decay() ? p.D : p.blocks_of(p.D);
  const int64_t state_rows = p.B * p.Hs * p.Lk;
  const int64_t dkey[4] = {p.B, p.Hs, p.Lk, p.D}, dvalue[4] = {p.B, p.Hs, p.Lk, p.Dv};
  const int64_t dquery[4] = {p.B, p.H, p.Lq, p.D};
  buffers.add("row_factor", p.row_factor, rows, true);
  buffers.add("row_delta", p.row_delta, rows, true);
  buffers.add("query_terms", p.query_terms, rows * terms, true);
  buffers.add("key_terms", p.key_terms, state_rows * terms * element, true);
  const int64_t column_blocks = std::max<int64_t>(p.blocks_of(p.Dv), 1);
  buffers.add("decay_dots", p.decay_dots, chunks * p.Hs * column_blocks * p.D * element, true);
  buffers.add("grad_out", p.grad_out, out, false);
  buffers.add("grad_state", p.grad_state, state, false);
  buffers.add("grad_z", p.grad_z, z, false);
  buffers.add("exact_out", p.exact_out, out, false);
  buffers.add("dquery", p.dquery, dquery, true);
  buffers.add("dkey", p.dkey, dkey, true);
  buffers.add("dvalue", p.dvalue, dvalue, true);
  buffers.add("ddecay", p.ddecay, decay, true);
  buffers.add("dinitial", p.dinitial, state, true);
  buffers.add("dinitial_z", p.dinitial_z, z, true);
  return buffers;
}

}  // namespace

template <>
void cuda_emulation::declare_buffers(const LinearCall& p) {
  set_buffers(buffers_of(p).list);
}
template <>
void cuda_emulation::declare_buffers(const attn::cuda::LinearStatesCall& p) {
  set_buffers(buffers_of(p).list);
}
template <>
void cuda_emulation::declare_buffers(const attn::cuda::LinearScanCall& p) {
  set_buffers(buffers_of(p).list);
}

template <>
void cuda_emulation::declare_buffers(const attn::cuda::FeatureMapCall& p) {
  const int64_t sizes[4] = {p.B, p.heads, p.L, p.D};
  Buffers buffers;
  buffers.add("from", p.from, sizes, false);
  buffers.add("to", p.to, sizes, true);
  set_buffers(std::move(buffers.list));
}

template <>
void cuda_emulation::declare_buffers(const attn::cuda::LinearRowsCall& p) {
  const bool tokens = p.D == 0;
  const int64_t from[4] = {p.B, p.heads * p.group, p.L, std::max<int64_t>(p.D, 1)};
  const int64_t to[4] = {tokens ? 1 : p.B, p.heads, tokens ? 1 : p.L, std::max<int64_t>(p.D, 1)};
  Buffers buffers;
  buffers.add("from", p.from, from, false);
  buffers.add("phi", p.phi, to, false);
  buffers.add("to", p.to, to, true);
  set_buffers(std::move(buffers.list));
}
