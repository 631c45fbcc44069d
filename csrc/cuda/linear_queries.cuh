// Linear attention backward: dquery. A block computes edge columns of a chunk of one head, from the
// state before the chunk and the pairs in it.
#pragma once

#include "cuda/linear_scores.cuh"

namespace attn::cuda {

template <class Arithmetic, bool kChannel>
class LinearQueries {
  using T = typename Arithmetic::Sum;
  using Memory = ChunkMemory<Arithmetic, kChannel>;
  using Sum = ChunkSum<Arithmetic>;
  static constexpr int kEdge = Arithmetic::kEdge;

  const LinearCall& p_;
  const Memory memory_;
  int64_t h_, hs_, d0_;
  LinearChunk chunk_;

 public:
  ATTN_DEVICE LinearQueries(const LinearCall& p, unsigned char* shared) : p_(p), memory_(shared) {
    int64_t item = blockIdx.x;
    const int64_t row_blocks = p.blocks_of(p.D);
    d0_ = item % row_blocks * kEdge, item /= row_blocks;
    h_ = item % p.H, hs_ = h_ / p.group();
    chunk_ = chunk_of_slot(p, item / p.H, p.Lq, true);
  }

  ATTN_DEVICE void run() {
    if (chunk_.begin >= chunk_.stop) return;
    Sum gradient;
    gradient.clear();
    if (!chunk_.empty()) {
      load_row_terms<Arithmetic>(p_, chunk_, h_, memory_.factor, memory_.delta);
      Sum products;
      products.clear();
      add_state(gradient, products);
      if (p_.decay) memory_.decays.load(p_, chunk_, hs_, d0_);
      fade(gradient);
      if (p_.causal) add_pairs(gradient, products);
      gradient.for_each([&](int t, int, T& x) { x *= memory_.factor[t]; });
    }
    if (p_.dquery) store_chunk(gradient, p_.dquery, chunk_, h_, d0_, p_.D);
  }

 private:
  // gradient = grad_out S^T, products = grad_out v^T
  ATTN_DEVICE void add_state(Sum& gradient, Sum& products) {
    const StateMemory<T> state = chunk_state<T>(p_, p_.chunk_states, chunk_, hs_);
    const Rows grads = rows_of(p_.grad_out, chunk_.b, h_, chunk_.live, p_.Dv);
    const Rows values = value_rows(p_, chunk_.b, hs_, chunk_.live);
    Sum product;
    for (int64_t c0 = 0; c0 < p_.Dv; c0 += kEdge) {
      __syncthreads();
      memory_.first.load(grads, chunk_.begin, c0);
      if (p_.causal) memory_.second.load(values, chunk_.begin, c0);
      const T scale =
          memory_.third.load_scaled(state.block(d0_, c0), p_.Dv, columns_from(d0_, p_.D, kEdge),
                                    columns_from(c0, p_.Dv, kEdge));
      memory_.first.wait();
      __syncthreads();
      const Depth depth = depth_from(c0, p_.Dv, kEdge);
      if (p_.causal) add_product<false, true>(products, memory_.first, memory_.second, depth);
      product.clear();
      add_product<false, true>(product, memory_.first, memory_.third, depth);
      gradient.add(product, scale);
    }
    __syncthreads();
  }
  // To the token, or (per channel) to its group, from the chunk's beginning; with z's share.
  ATTN_DEVICE void fade(Sum& gradient) {
    const T* z = chunk_state<T>(p_, p_.chunk_states, chunk_, hs_).z() + d0_;
    const int columns = columns_from(d0_, p_.D, kEdge);
    gradient.for_each([&](int t, int d, T& x) {
      if (p_.normalize && d < columns) x -= memory_.delta[t] * z[d];
      if constexpr (kChannel)
        x *= memory_.decays.before(t / 16, d);
      else if (p_.decay)
        x *= memory_.decays.from_start(t);
    });
  }

  ATTN_DEVICE void add_pairs(Sum& gradient, Sum& products) {
    products.for_each([&](int t, int, T& x) { x -= memory_.delta[t]; });
    products.for_each([&](int t, int s, T x) {
      if (s == t) memory_.diagonal[t] = x;
    });
    products.for_each([&](int t, int s, T& x) {
      if (s >= t)
        x = 0;
      else if (!kChannel && p_.decay)
        x *= weight(t, s);
    });
    const Rows keys = key_rows(p_, chunk_.b, hs_, chunk_.live);
    if constexpr (kChannel)
      add_channel_pairs(gradient, products, keys);
    else
      add_weighted<false>(gradient, products, keys, chunk_.begin, d0_, memory_);
    if (p_.query_terms) store_terms(gradient, products);
    gradient.add_rows(memory_.diagonal, memory_.second);
  }
  ATTN_DEVICE T weight(int t, int s) const {
    if constexpr (kChannel)
      return 1;
    else
      return memory_.decays.weight(t, s);
  }
  ATTN_DEVICE void add_channel_pairs(Sum& gradient, Sum& products, const Rows& keys) {
    const auto weights = memory_.first, own_keys = memory_.second, pairs = memory_.third;
    products.store(weights);
    own_keys.load(keys, chunk_.begin, d0_);
    own_keys.wait();
    __syncthreads();
    memory_.decays.fade_keys(pairs, own_keys);
    __syncthreads();
    const int group = Sum::row_group();
    for (int earlier = 0; earlier < group; ++earlier)
      add_product<false, false>(gradient, weights, pairs,
                                {16, earlier * 16, memory_.decays.pair_row(group, earlier)});
    gradient.for_each(
        [&](int t, int d, T& x) { x = memory_.decays.add_earlier(t, d, x, weights, own_keys); });
  }

  // phi(q) dphi(q) without the pairs (t, t), of each channel or summed.
  ATTN_DEVICE void store_terms(Sum& gradient, Sum& terms) {
    const Rows queries = query_rows(p_, chunk_.b, h_, chunk_.live);
    terms = gradient;
    terms.for_each([&](int t, int d, T& x) {
      x *= memory_.factor[t] * queries.load<T>(chunk_.begin + t, d0_ + d);
    });
    store_decay_terms<kChannel>(terms, p_, chunk_, p_.query_terms, p_.H, h_, d0_);
  }
};

template <class Arithmetic, bool kChannel>
__global__ void __launch_bounds__(Arithmetic::kThreads)
    linear_queries_kernel(const __grid_constant__ LinearCall p) {
  ATTN_SHARED(shared);
  if constexpr (!Arithmetic::kTensor || kTensorCores)
    LinearQueries<Arithmetic, kChannel>(p, shared).run();
}

}  // namespace attn::cuda
