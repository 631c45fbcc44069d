// The delta rule's gradients, all chunks at once, given S and R at their borders.
#pragma once

#include "cuda/delta_inverse.cuh"

namespace attn::cuda {

// One head that reads the state: a head of out, or the keys, whose gradient is -value_grads and who
// don't see their own token.
template <class Kind>
struct DeltaReader {
  const DeltaBlock<Kind>& block;
  bool is_key;
  int64_t h;
  Rows queries, grads;

  using T = typename DeltaBlock<Kind>::T;

  ATTN_DEVICE DeltaReader(const DeltaBlock<Kind>& of, int64_t g)
      : block(of), is_key(g == of.p.group()), h(of.out_head(is_key ? 0 : g)) {
    queries = block.input(block.p.query, block.query_head(h), block.p.D);
    grads = block.input(block.p.grad_out, h, block.p.Dv);
  }
  ATTN_DEVICE T query(int64_t t, int64_t d) const {
    return is_key ? block.key(t, d) : block.load(queries, t, d);
  }
  ATTN_DEVICE T grad(int64_t t, int64_t c) const {
    if (is_key) return -block.tokens(block.p.value_grads, block.p.Dv)(t, c);
    return static_cast<T>(block.p.scale) * block.load(grads, t, c);
  }
};

// A block owns a chunk of a state head, and one tile of the columns of dquery and dkey.
template <class Kind>
class DeltaGradients {
 public:
  using Block = DeltaBlock<Kind>;

  ATTN_DEVICE DeltaGradients(const DeltaCall& call, int64_t head, int64_t column,
                             unsigned char* shared)
      : p(call), column_(column), block_(call, head, shared) {}

  ATTN_DEVICE void run(const DeltaChunk& chunk) {
    block_.enter(chunk);
    clear_padding();
    if (chunk.live <= 0) return;
    if (column_ == 0 && p.dvalue) store_value_grads();
    const auto after = block_.state(p.state_grads, chunk.slot + 1);
    keys_.clear();
    block_.products.template add<false, true>(
        keys_, p.Dv, [&](int64_t s, int64_t c) { return corrected(s, c); },
        [&](int64_t d, int64_t c) { return after(column_ + d, c); });
    if (p.decay)
      block_.products.transform(keys_,
                                [&](int s, int d, T x) { return x * block_.tail(s, column_ + d); });
    diagonal_.clear();
    ATTN_ROLLED
    for (int64_t g = 0; g <= p.group(); ++g) visit(DeltaReader<Kind>(block_, g), g == 0);
    store_key_grads();
  }

 private:
  using T = typename Block::T;
  using Sum = typename Block::Sum;
  using Reader = DeltaReader<Kind>;

  const DeltaCall& p;
  const int64_t column_;
  Block block_;
  Sum sum_, keys_, diagonal_;  // dkey of the tokens that write, and what pairs (t, t) add to it

  ATTN_DEVICE bool inside(int64_t t, int64_t d) const {
    return t < block_.chunk.live && column_ + d < p.D;
  }
  ATTN_DEVICE T corrected(int64_t s, int64_t c) const {
    return block_.memory.betas[s] * block_.errors()(s, c);
  }
  ATTN_DEVICE void store(const View& view, int64_t h, int64_t t, int64_t column, T x) const {
    store_element(view.at(block_.chunk.b, h, block_.chunk.first + t, column), view.dtype, x);
  }
  ATTN_DEVICE void clear_padding() const {
    for (int64_t g = 0; p.dquery && g < p.group(); ++g)
      block_.clear_padding(p.dquery, block_.out_head(g), column_, p.D);
    if (p.dkey) block_.clear_padding(p.dkey, block_.state_head, column_, p.D);
    for (int64_t c = 0; p.dvalue && column_ == 0 && c < p.Dv; c += Block::kEdge)
      block_.clear_padding(p.dvalue, block_.state_head, c, p.Dv);
  }
  ATTN_DEVICE void store_value_grads() const {
    const auto from = block_.tokens(p.value_grads, p.Dv);
    for (int64_t c0 = 0; c0 < p.Dv; c0 += Block::kEdge)
      Block::for_elements(block_.chunk.live, c0, [&](int64_t t, int64_t c) {
        if (c < p.Dv) store(p.dvalue, block_.state_head, t, c, from.at(t, c));
      });
  }

  // weights[t][s] = w_ts (grad_t . U_s) of s < t (of channels without w), 0 elsewhere; diagonal[t]
  // = grad_t . U_t.
  ATTN_DEVICE void make_weights(const Reader& reader) {
    sum_.clear();
    block_.products.template add<false, true>(
        sum_, p.Dv, [&](int64_t t, int64_t c) { return reader.grad(t, c); },
        [&](int64_t s, int64_t c) { return corrected(s, c); });
    sum_.for_each([&](int t, int s, T x) {
      block_.weight(t, s) = t < block_.chunk.live && s < t ? x * block_.between(t, s) : T(0);
      if (t == s) block_.memory.diagonal[t] = reader.is_key ? T(0) : x;
    });
    __syncthreads();
  }

  // sum_ = dquery of the reader, without the pairs (t, t).
  ATTN_DEVICE void make_query_grads(const Reader& reader) {
    const auto state = block_.state(p.states, block_.chunk.slot);
    sum_.clear();
    block_.products.template add<false, true>(
        sum_, p.Dv, [&](int64_t t, int64_t c) { return reader.grad(t, c); },
        [&](int64_t d, int64_t c) { return state(column_ + d, c); });
    if (p.decay)
      block_.products.transform(sum_,
                                [&](int t, int d, T x) { return x * block_.head(t, column_ + d); });
    const auto weight = [&](int64_t t, int64_t s) { return block_.weight(t, s); };
    if (!p.channel_decay()) {
      block_.products.template add_lower<false>(
          sum_, block_.chunk.live, weight,
          [&](int64_t s, int64_t d) { return block_.key(s, column_ + d); });
      return;
    }
    block_.products.transform(sum_, [&](int t, int d, T x) {
      for (int s = 0; inside(t, d) && s < t; ++s)
        x += weight(t, s) * block_.key(s, column_ + d) * block_.between(t, s, column_ + d);
      return x;
    });
  }

  ATTN_DEVICE void add_key_grads(const Reader& reader) {
    const auto weight = [&](int64_t t, int64_t s) { return block_.weight(t, s); };
    if (!p.channel_decay()) {
      block_.products.template add_lower<true>(
          keys_, block_.chunk.live, weight,
          [&](int64_t t, int64_t d) { return reader.query(t, column_ + d); });
    } else {
      block_.products.transform(keys_, [&](int s, int d, T x) {
        for (int t = s + 1; inside(s, d) && t < block_.chunk.live; ++t)
          x += weight(t, s) * reader.query(t, column_ + d) * block_.between(t, s, column_ + d);
        return x;
      });
    }
    block_.products.transform(diagonal_, [&](int t, int d, T x) {
      return x + block_.memory.diagonal[t] * reader.query(t, column_ + d);
    });
  }

  ATTN_DEVICE void visit(const Reader& reader, bool first) {
    make_weights(reader);
    make_query_grads(reader);
    add_key_grads(reader);
    const auto terms = block_.tokens(p.decay_terms, p.D);
    block_.products.for_each(sum_, [&](int t, int d, T x) {
      if (!inside(t, d)) return;
      const int64_t column = column_ + d;
      if (p.ddecay)
        terms.at(t, column) = (first ? T(0) : terms.at(t, column)) + reader.query(t, column) * x;
      if (!reader.is_key && p.dquery)
        store(p.dquery, reader.h, t, column, x + block_.memory.diagonal[t] * block_.key(t, column));
    });
  }

  ATTN_DEVICE void store_key_grads() {
    const auto terms = block_.tokens(p.decay_terms, p.D);
    block_.products.for_each(keys_, [&](int t, int d, T x) {
      if (p.ddecay && inside(t, d)) terms.at(t, column_ + d) -= block_.key(t, column_ + d) * x;
    });
    keys_.add(sum_, 1);
    keys_.add(diagonal_, 1);
    block_.products.for_each(keys_, [&](int t, int d, T x) {
      if (p.dkey && inside(t, d)) store(p.dkey, block_.state_head, t, column_ + d, x);
    });
  }
};

template <class Kind>
__global__ void __launch_bounds__(Kind::Arithmetic::kThreads, 1)
    delta_gradients_kernel(const __grid_constant__ DeltaCall p) {
  if constexpr (!Kind::Arithmetic::kTensor || kTensorCores) {
    using Block = DeltaBlock<Kind>;
    ATTN_SHARED(shared);
    DeltaItem item{blockIdx.x};
    const int64_t column = item.take(tiles_over(p.D, Block::kEdge)) * Block::kEdge;
    const int64_t head = item.take(p.Hs);
    DeltaGradients<Kind>(p, head, column, shared).run(DeltaChunk::at(p, item.rest));
  }
}

// dbeta_s = dU_s . e_s - sum_{t>s} w_ts (k_t . k_s) (beta_t r_t . e_s); a block owns a chunk of a
// state head.
template <class Kind>
__global__ void __launch_bounds__(Kind::Arithmetic::kThreads, 1)
    delta_beta_kernel(const __grid_constant__ DeltaCall p) {
  if constexpr (!Kind::Arithmetic::kTensor || kTensorCores) {
    using Block = DeltaBlock<Kind>;
    using T = typename Block::T;
    ATTN_SHARED(shared);
    DeltaItem item{blockIdx.x};
    Block block(p, item.take(p.Hs), shared);
    block.enter(DeltaChunk::at(p, item.rest));
    const DeltaChunk& chunk = block.chunk;
    const auto errors = block.errors();
    const auto values = block.tokens(p.value_grads, p.Dv);
    const auto corrected = block.tokens(p.corrected_grads, p.Dv);
    const auto overlaps = block.pairs(p.overlaps);

    typename Block::Sum sum;
    sum.clear();
    block.products.template add<false, true>(sum, p.Dv, corrected, errors);
    sum.for_each([&](int t, int s, T x) {
      if (t == s) block.memory.diagonal[t] = x;
    });
    sum.clear();
    block.products.template add<false, true>(sum, p.Dv, values, errors);
    sum.for_each([&](int t, int s, T x) {
      block.weight(t, s) = t < chunk.live && s < t ? x * overlaps.at(t, s) : T(0);
    });
    __syncthreads();
    const auto s = static_cast<int>(threadIdx.x);
    if (s >= chunk.rows) return;
    T total = s < chunk.live ? block.memory.diagonal[s] : T(0);
    for (int t = s + 1; t < chunk.live; ++t) total -= block.weight(t, s);
    store_element(p.dbeta.at(chunk.b, block.state_head, chunk.first + s), p.dbeta.dtype, total);
  }
}

}  // namespace attn::cuda
