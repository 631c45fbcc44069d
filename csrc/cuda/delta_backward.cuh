// The delta rule's backward pass but for its last products: with U = beta e, the gradient of U, and
// of what a chunk's queries read from the state before it, all chunks at once; then, chunk after
// chunk from the end, the transposed triangular system and R, the state's gradient.
#pragma once

#include "cuda/delta_inverse.cuh"

namespace attn::cuda {

// A block owns a chunk of a state head, and one tile of its columns of values.
template <class Kind>
__global__ void __launch_bounds__(Kind::Arithmetic::kThreads, 1)
    delta_read_grads_kernel(const __grid_constant__ DeltaCall p) {
  if constexpr (!Kind::Arithmetic::kTensor || kTensorCores) {
    using Block = DeltaBlock<Kind>;
    using T = typename Block::T;
    ATTN_SHARED(shared);
    DeltaItem item{blockIdx.x};
    const int64_t column = item.take(p.column_tiles()) * Block::kEdge;
    Block block(p, item.take(p.Hs), shared);
    const DeltaChunk chunk = DeltaChunk::at(p, item.rest);
    if (chunk.live <= 0) return;
    block.enter(chunk);
    const auto scaled = [&](const Rows& grads, int64_t t, int64_t c) {
      return static_cast<T>(p.scale) * block.load(grads, t, column + c);
    };

    typename Block::Sum corrected, sum;
    corrected.clear();
    for (int64_t g = 0; g < p.group(); ++g) {
      const int64_t h = block.out_head(g);
      const Rows queries = block.input(p.query, block.query_head(h), p.D);
      const Rows grads = block.input(p.grad_out, h, p.Dv);
      block.weigh_keys(sum, [&](int64_t t, int64_t d) { return block.load(queries, t, d); }, true);
      block.store_weights(sum);
      block.products.template add_lower<true>(
          corrected, chunk.live, [&](int64_t t, int64_t s) { return block.weight(t, s); },
          [&](int64_t t, int64_t c) { return scaled(grads, t, c); });
    }
    const auto to = block.tokens(p.corrected_grads, p.Dv);
    block.products.for_each(corrected, [&](int s, int c, T x) {
      if (to.has(s, column + c)) to.at(s, column + c) = x;
    });

    const auto read = block.state(p.state_grads, chunk.slot);
    for (int64_t d0 = 0; d0 < p.D; d0 += Block::kEdge) {
      sum.clear();
      for (int64_t g = 0; g < p.group(); ++g) {
        const int64_t h = block.out_head(g);
        const Rows queries = block.input(p.query, block.query_head(h), p.D);
        const Rows grads = block.input(p.grad_out, h, p.Dv);
        block.products.template add<true, false>(
            sum, chunk.live,
            [&](int64_t t, int64_t d) {
              return block.head(t, d0 + d) * block.load(queries, t, d0 + d);
            },
            [&](int64_t t, int64_t c) { return scaled(grads, t, c); });
      }
      block.products.for_each(sum, [&](int d, int c, T x) {
        if (read.has(d0 + d, column + c)) read.at(d0 + d, column + c) = x;
      });
    }
  }
}

// A block owns the columns of values and states of one tile, of one sequence of a state head.
template <class Kind>
__global__ void __launch_bounds__(Kind::Arithmetic::kThreads, 1)
    delta_state_grads_kernel(const __grid_constant__ DeltaCall p) {
  if constexpr (!Kind::Arithmetic::kTensor || kTensorCores) {
    using Block = DeltaBlock<Kind>;
    using T = typename Block::T;
    ATTN_SHARED(shared);
    DeltaItem item{blockIdx.x};
    const int64_t column = item.take(p.column_tiles()) * Block::kEdge;
    Block block(p, item.take(p.Hs), shared);
    const DeltaSequence sequence(p, item.rest);
    const int64_t h = block.state_head, chunks = max64(sequence.chunks, 0);
    const auto end = block.state(p.state_grads, sequence.first_slot + chunks);
    const View& given = p.grad_state;
    Block::for_elements(p.D, column, [&](int64_t d, int64_t c) {
      if (c < p.Dv)
        end.at(d, c) = given ? load_element<T>(given.at(item.rest, h, d, c), given.dtype) : T(0);
    });
    for (int64_t n = chunks - 1; n >= 0; --n) {
      block.enter({p, sequence, n});
      const DeltaChunk& chunk = block.chunk;
      const auto before = block.state(p.state_grads, chunk.slot);
      const auto after = block.state(p.state_grads, chunk.slot + 1);
      const auto corrected = block.tokens(p.corrected_grads, p.Dv);
      const auto values = block.tokens(p.value_grads, p.Dv);
      const auto solution = block.pairs(p.inverses);

      typename Block::Sum sum;
      sum.clear();
      block.products.template add<false, false>(
          sum, p.D, [&](int64_t t, int64_t d) { return block.tail(t, d) * block.key(t, d); },
          [&](int64_t d, int64_t c) { return after(d, column + c); });
      block.products.for_each(sum, [&](int s, int c, T x) {
        if (corrected.has(s, column + c)) corrected.at(s, column + c) += x;
      });
      sum.clear();
      block.products.template add_lower<true>(sum, chunk.live, solution, [&](int64_t t, int64_t c) {
        return block.memory.betas[t] * corrected(t, column + c);
      });
      block.products.for_each(sum, [&](int s, int c, T x) {
        if (values.has(s, column + c)) values.at(s, column + c) = x;
      });
      for (int64_t d0 = 0; d0 < p.D; d0 += Block::kEdge) {
        sum.clear();
        block.products.template add<true, false>(
            sum, chunk.live,
            [&](int64_t t, int64_t d) { return block.head(t, d0 + d) * block.key(t, d0 + d); },
            [&](int64_t t, int64_t c) { return values(t, column + c); });
        block.products.for_each(sum, [&](int d, int c, T x) {
          if (before.has(d0 + d, column + c))
            before.at(d0 + d, column + c) += block.total(d0 + d) * after.at(d0 + d, column + c) - x;
        });
      }
    }
    __syncthreads();
    if (!p.dinitial) return;
    const auto begin = block.state(p.state_grads, sequence.first_slot);
    Block::for_elements(p.D, column, [&](int64_t d, int64_t c) {
      if (c < p.Dv)
        store_element(p.dinitial.at(item.rest, h, d, c), p.dinitial.dtype, begin.at(d, c));
    });
  }
}

}  // namespace attn::cuda
