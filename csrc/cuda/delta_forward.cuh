// The delta rule's forward pass: errors and states, chunk after chunk, then all outputs.
#pragma once

#include "cuda/delta_inverse.cuh"

namespace attn::cuda {

// A block owns the columns of values and states of one tile, of one sequence of a state head.
template <class Kind>
__global__ void __launch_bounds__(Kind::Arithmetic::kThreads, 1)
    delta_states_kernel(const __grid_constant__ DeltaCall p) {
  if constexpr (!Kind::Arithmetic::kTensor || kTensorCores) {
    using Block = DeltaBlock<Kind>;
    using T = typename Block::T;
    ATTN_SHARED(shared);
    DeltaItem item{blockIdx.x};
    const int64_t column = item.take(p.column_tiles()) * Block::kEdge;
    Block block(p, item.take(p.Hs), shared);
    const DeltaSequence sequence(p, item.rest);
    const int64_t h = block.state_head;
    const auto begin = block.state(p.states, sequence.first_slot);
    Block::for_elements(p.D, column, [&](int64_t d, int64_t c) {
      if (c < p.Dv)
        begin.at(d, c) =
            p.initial ? load_element<T>(p.initial.at(item.rest, h, d, c), p.initial.dtype) : T(0);
    });
    for (int64_t n = 0; n < sequence.chunks; ++n) {
      block.enter({p, sequence, n});
      const DeltaChunk& chunk = block.chunk;
      const auto state = block.state(p.states, chunk.slot);
      const auto next = block.state(p.states, chunk.slot + 1);
      const auto errors = block.errors();
      const auto solution = block.pairs(p.inverses);

      typename Block::Sum sum;
      sum.clear();
      block.products.template add<false, false>(
          sum, p.D, [&](int64_t t, int64_t d) { return block.head(t, d) * block.key(t, d); },
          [&](int64_t d, int64_t c) { return state(d, column + c); });
      block.products.for_each(sum, [&](int t, int c, T x) {
        if (errors.has(t, column + c)) errors.at(t, column + c) = block.value(t, column + c) - x;
      });
      sum.clear();
      block.products.template add_lower<false>(
          sum, chunk.live, solution, [&](int64_t t, int64_t c) { return errors(t, column + c); });
      block.products.for_each(sum, [&](int t, int c, T x) {
        if (errors.has(t, column + c)) errors.at(t, column + c) = x;
      });
      for (int64_t d0 = 0; d0 < p.D; d0 += Block::kEdge) {
        sum.clear();
        block.products.template add<true, false>(
            sum, chunk.live,
            [&](int64_t t, int64_t d) { return block.tail(t, d0 + d) * block.key(t, d0 + d); },
            [&](int64_t t, int64_t c) { return block.memory.betas[t] * errors(t, column + c); });
        block.products.for_each(sum, [&](int d, int c, T x) {
          if (next.has(d0 + d, column + c))
            next.at(d0 + d, column + c) = block.total(d0 + d) * state.at(d0 + d, column + c) + x;
        });
      }
    }
    __syncthreads();
    if (!p.state) return;
    const auto end = block.state(p.states, sequence.first_slot + max64(sequence.chunks, 0));
    Block::for_elements(p.D, column, [&](int64_t d, int64_t c) {
      if (c < p.Dv) store_element(p.state.at(item.rest, h, d, c), p.state.dtype, end.at(d, c));
    });
  }
}

// A block owns a chunk of a head of out, and one tile of its columns.
template <class Kind>
__global__ void __launch_bounds__(Kind::Arithmetic::kThreads, 1)
    delta_out_kernel(const __grid_constant__ DeltaCall p) {
  if constexpr (!Kind::Arithmetic::kTensor || kTensorCores) {
    using Block = DeltaBlock<Kind>;
    using T = typename Block::T;
    ATTN_SHARED(shared);
    DeltaItem item{blockIdx.x};
    const int64_t column = item.take(p.column_tiles()) * Block::kEdge, h = item.take(p.H);
    Block block(p, h / p.group(), shared);
    block.enter(DeltaChunk::at(p, item.rest));
    const DeltaChunk& chunk = block.chunk;
    block.clear_padding(p.out, h, column, p.Dv);
    if (chunk.live <= 0) return;
    const Rows queries = block.input(p.query, block.query_head(h), p.D);
    const auto state = block.state(p.states, chunk.slot);
    const auto errors = block.errors();

    typename Block::Sum sum;
    block.weigh_keys(sum, [&](int64_t t, int64_t d) { return block.load(queries, t, d); }, true);
    block.store_weights(sum);
    sum.clear();
    block.products.template add<false, false>(
        sum, p.D,
        [&](int64_t t, int64_t d) { return block.head(t, d) * block.load(queries, t, d); },
        [&](int64_t d, int64_t c) { return state(d, column + c); });
    block.products.template add_lower<false>(
        sum, chunk.live, [&](int64_t t, int64_t s) { return block.weight(t, s); },
        [&](int64_t s, int64_t c) { return block.memory.betas[s] * errors(s, column + c); });
    block.products.for_each(sum, [&](int t, int c, T x) {
      if (t < chunk.live && column + c < p.Dv)
        store_element(p.out.at(chunk.b, h, chunk.first + t, column + c), p.out.dtype,
                      static_cast<T>(p.scale) * x);
    });
  }
}

}  // namespace attn::cuda
