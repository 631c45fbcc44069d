// Which memory the delta rule's kernels may touch, from the parameters that they get.
#include "buffers.h"
#include "cuda/delta_call.cuh"
#include "cuda/delta_step.cuh"

namespace {

using cuda_emulation::Buffers;

void add_inputs(Buffers& buffers, const attn::LinearParams& p) {
  const int64_t query[4] = {p.B, p.Hq, p.Lq, p.D}, key[4] = {p.B, p.Hk, p.Lk, p.D};
  const int64_t value[4] = {p.B, p.Hv, p.Lk, p.Dv}, decay[4] = {p.B, p.Hs, p.Lk, p.D};
  const int64_t beta[4] = {p.B, p.Hs, p.Lk, 1};
  buffers.add("query", p.query, query, false);
  buffers.add("key", p.key, key, false);
  buffers.add("value", p.value, value, false);
  buffers.add("decay", p.decay, decay, false);
  buffers.add("beta", p.beta, beta, false);
  buffers.add("key_lengths", p.key_lengths, p.B * 8, false);
  buffers.add("cu_seqlens", p.cu_seqlens, (p.sequences + 1) * 8, false);
}

}  // namespace

template <>
void cuda_emulation::declare_buffers(const attn::cuda::DeltaCall& p) {
  Buffers buffers;
  add_inputs(buffers, p);
  const bool backward = static_cast<bool>(p.grad_out);
  const int64_t out[4] = {p.B, p.H, p.Lq, p.Dv}, state[4] = {p.sequences, p.Hs, p.D, p.Dv};
  buffers.add("initial_state", p.initial, state, false);
  if (!backward) {
    buffers.add("out", p.out, out, true);
    buffers.add("state", p.state, state, true);
  }
  buffers.add("grad_out", p.grad_out, out, false);
  buffers.add("grad_state", p.grad_state, state, false);
  const int64_t query[4] = {p.B, p.H, p.Lq, p.D}, key[4] = {p.B, p.Hs, p.Lk, p.D};
  const int64_t value[4] = {p.B, p.Hs, p.Lk, p.Dv}, beta[4] = {p.B, p.Hs, p.Lk, 1};
  const int64_t decay[4] = {p.B, p.Hs, p.Lk, p.decay_columns()};
  buffers.add("dquery", p.dquery, query, true);
  buffers.add("dkey", p.dkey, key, true);
  buffers.add("dvalue", p.dvalue, value, true);
  buffers.add("dbeta", p.dbeta, beta, true);
  buffers.add("ddecay", p.ddecay, decay, true);
  buffers.add("dinitial", p.dinitial, state, true);

  const int64_t size = p.query.dtype == attn::Dtype::kFloat64 ? 8 : 4;
  const int64_t tokens = p.B * p.Hs * p.Lk, borders = p.Hs * p.slots;
  const int64_t pairs = borders * p.chunk * p.chunk * size, states = borders * p.D * p.Dv * size;
  buffers.add("log_decays", p.log_decays, tokens * p.decay_columns() * 8, true);
  buffers.add("inverses", p.inverses, pairs, true);
  buffers.add("overlaps", p.overlaps, pairs, true);
  buffers.add("states", p.states, states, true);
  buffers.add("state_grads", p.state_grads, states, true);
  buffers.add("errors", p.errors, tokens * p.Dv * size, true);
  buffers.add("corrected_grads", p.corrected_grads, tokens * p.Dv * size, true);
  buffers.add("value_grads", p.value_grads, tokens * p.Dv * size, true);
  buffers.add("decay_terms", p.decay_terms, p.ddecay ? tokens * p.D * size : 0, true);
  set_buffers(std::move(buffers.list));
}

template <>
void cuda_emulation::declare_buffers(const attn::cuda::DeltaStep& p) {
  Buffers buffers;
  add_inputs(buffers, p);
  const int64_t out[4] = {p.B, p.H, 1, p.Dv}, state[4] = {p.sequences, p.Hs, p.D, p.Dv};
  buffers.add("state", p.initial, state, true);
  buffers.add("out", p.out, out, true);
  set_buffers(std::move(buffers.list));
}
