// Linear attention backward: dkey and dvalue. A block computes edge columns of a chunk of one state
// head, from the gradient R of the state behind the chunk and the pairs in it.
#pragma once

#include "cuda/linear_scores.cuh"

namespace attn::cuda {

template <class Arithmetic, bool kChannel>
class KeyGradientBlock {
 protected:
  using T = typename Arithmetic::Sum;
  using Sum = ChunkSum<Arithmetic>;
  static constexpr int kEdge = Arithmetic::kEdge;

  const LinearCall& p_;
  const ChunkMemory<Arithmetic, kChannel> memory_;
  int64_t hs_, column0_;
  LinearChunk chunk_;

  ATTN_DEVICE KeyGradientBlock(const LinearCall& p, unsigned char* shared, int64_t columns)
      : p_(p), memory_(shared) {
    int64_t item = blockIdx.x;
    const int64_t blocks = p.blocks_of(columns);
    column0_ = item % blocks * kEdge, item /= blocks;
    hs_ = item % p.Hs;
    chunk_ = chunk_of_slot(p, item / p.Hs, p.Lk, false);
  }

  ATTN_DEVICE int64_t head(int64_t g) const { return hs_ * p_.group() + g; }
  ATTN_DEVICE StateMemory<T> state_grad() const {
    return chunk_state<T>(p_, p_.chunk_grads, chunk_, hs_);
  }
};

template <class Arithmetic, bool kChannel>
class LinearKeys : KeyGradientBlock<Arithmetic, kChannel> {
  using Base = KeyGradientBlock<Arithmetic, kChannel>;
  using Base::chunk_;
  using Base::kEdge;
  using Base::memory_;
  using Base::p_;
  using typename Base::Sum;
  using typename Base::T;

  // Of other tokens, and of the pair of a token with itself, which no decay weighs; per channel the
  // first waits for its way from the group's end, the pairs of a group don't.
  Sum gradient_, own_, in_group_;

 public:
  ATTN_DEVICE LinearKeys(const LinearCall& p, unsigned char* shared) : Base(p, shared, p.D) {}

  ATTN_DEVICE void run() {
    if (chunk_.begin >= chunk_.stop) return;
    gradient_.clear();
    own_.clear();
    if (!chunk_.empty()) {
      add_state();
      if (p_.decay) memory_.decays.load(p_, chunk_, this->hs_, this->column0_);
      fade();
      if constexpr (kChannel) in_group_.clear();
      for (int64_t g = 0; p_.causal && g < p_.group(); ++g) add_head(this->head(g));
      if constexpr (kChannel) finish_groups();
      if (p_.key_terms) store_terms();
      gradient_.add(own_, 1);
    }
    if (p_.dkey) store_chunk(gradient_, p_.dkey, chunk_, this->hs_, this->column0_, p_.D);
  }

 private:
  // gradient = v R^T
  ATTN_DEVICE void add_state() {
    const Rows values = value_rows(p_, chunk_.b, this->hs_, chunk_.live);
    Sum product;
    for (int64_t c0 = 0; c0 < p_.Dv; c0 += kEdge) {
      __syncthreads();
      memory_.first.load(values, chunk_.begin, c0);
      const T scale = memory_.second.load_scaled(this->state_grad().block(this->column0_, c0),
                                                 p_.Dv, columns_from(this->column0_, p_.D, kEdge),
                                                 columns_from(c0, p_.Dv, kEdge));
      memory_.first.wait();
      __syncthreads();
      product.clear();
      add_product<false, true>(product, memory_.first, memory_.second,
                               depth_from(c0, p_.Dv, kEdge));
      gradient_.add(product, scale);
    }
  }
  // From the chunk's end to the token, or (per channel) to its group's end; with z's share.
  ATTN_DEVICE void fade() {
    const T* z = this->state_grad().z() + this->column0_;
    const int columns = columns_from(this->column0_, p_.D, kEdge);
    gradient_.for_each([&](int s, int d, T& x) {
      if (p_.normalize && d < columns) x += z[d];
      if constexpr (kChannel)
        x *= memory_.decays.after(s / 16, d);
      else if (p_.decay)
        x *= memory_.decays.to_end(s);
    });
  }

  ATTN_DEVICE void add_head(int64_t h) {
    load_row_terms<Arithmetic>(p_, chunk_, h, memory_.factor, memory_.delta);
    Sum products, product;
    products.clear();
    add_value_products(products, p_, chunk_, h, memory_);
    __syncthreads();
    const T largest = largest_factor<Arithmetic>(memory_.factor);
    products.for_each(
        [&](int t, int, T& x) { x = (x - memory_.delta[t]) * (memory_.factor[t] / largest); });
    products.for_each([&](int t, int s, T x) {
      if (s == t) memory_.diagonal[t] = x * largest;
    });
    products.for_each([&](int t, int s, T& x) {
      if (s >= t)
        x = 0;
      else if constexpr (!kChannel)
        x *= p_.decay ? memory_.decays.weight(t, s) : T(1);
    });
    const Rows queries = query_rows(p_, chunk_.b, h, chunk_.live);
    product.clear();
    if constexpr (kChannel)
      add_channel_pairs(product, products, queries, largest);
    else
      add_weighted<true>(product, products, queries, chunk_.begin, this->column0_, memory_);
    gradient_.add(product, largest);
    own_.add_rows(memory_.diagonal, memory_.second);
  }
  ATTN_DEVICE void add_channel_pairs(Sum& product, Sum& products, const Rows& queries, T largest) {
    const auto weights = memory_.first, own_queries = memory_.second, pairs = memory_.third;
    products.store(weights);
    own_queries.load(queries, chunk_.begin, this->column0_);
    own_queries.wait();
    __syncthreads();
    memory_.decays.fade_queries(pairs, own_queries);
    __syncthreads();
    const int group = Sum::row_group();
    for (int later = group + 1; later < kEdge / 16; ++later)
      add_product<true, false>(product, weights, pairs,
                               {16, later * 16, memory_.decays.pair_row(later, group)});
    in_group_.for_each([&](int s, int d, T& x) {
      x += largest * memory_.decays.later_sum(s, d, weights, own_queries);
    });
  }
  ATTN_DEVICE void finish_groups() {
    gradient_.for_each([&](int s, int d, T& x) { x *= memory_.decays.to_group_end(s, d); });
    gradient_.add(in_group_, 1);
  }

  // phi(k) dphi(k) without the pairs (s, s), of each channel or summed.
  ATTN_DEVICE void store_terms() {
    const Rows keys = key_rows(p_, chunk_.b, this->hs_, chunk_.live);
    Sum terms = gradient_;
    terms.for_each(
        [&](int s, int d, T& x) { x *= keys.load<T>(chunk_.begin + s, this->column0_ + d); });
    store_decay_terms<kChannel>(terms, p_, chunk_, p_.key_terms, p_.Hs, this->hs_, this->column0_);
  }
};

template <class Arithmetic, bool kChannel>
class LinearValues : KeyGradientBlock<Arithmetic, kChannel> {
  using Base = KeyGradientBlock<Arithmetic, kChannel>;
  using Base::chunk_;
  using Base::kEdge;
  using Base::memory_;
  using Base::p_;
  using typename Base::Sum;
  using typename Base::T;

 public:
  ATTN_DEVICE LinearValues(const LinearCall& p, unsigned char* shared) : Base(p, shared, p.Dv) {}

  ATTN_DEVICE void run() {
    if (chunk_.begin >= chunk_.stop) return;
    Sum gradient;
    gradient.clear();
    if (!chunk_.empty()) {
      if (!kChannel && p_.decay) memory_.decays.load(p_, chunk_, this->hs_, 0);
      add_state(gradient);
      if constexpr (!kChannel)
        if (p_.decay) gradient.for_each([&](int s, int, T& x) { x *= memory_.decays.to_end(s); });
      for (int64_t g = 0; p_.causal && g < p_.group(); ++g) add_head(gradient, this->head(g));
    }
    store_chunk(gradient, p_.dvalue, chunk_, this->hs_, this->column0_, p_.Dv);
  }

 private:
  // gradient = keys (faded channel by channel) times R
  ATTN_DEVICE void add_state(Sum& gradient) {
    const Rows keys = key_rows(p_, chunk_.b, this->hs_, chunk_.live);
    Sum product;
    for (int64_t d0 = 0; d0 < p_.D; d0 += kEdge) {
      __syncthreads();
      memory_.first.load(keys, chunk_.begin, d0);
      if constexpr (kChannel) {
        memory_.decays.load(p_, chunk_, this->hs_, d0);
        memory_.first.wait();
        __syncthreads();
        memory_.decays.fade_to_end(memory_.first);
      }
      const T scale = memory_.second.load_scaled(this->state_grad().block(d0, this->column0_),
                                                 p_.Dv, columns_from(d0, p_.D, kEdge),
                                                 columns_from(this->column0_, p_.Dv, kEdge));
      memory_.first.wait();
      __syncthreads();
      product.clear();
      add_product<false, false>(product, memory_.first, memory_.second,
                                depth_from(d0, p_.D, kEdge));
      gradient.add(product, scale);
    }
  }
  ATTN_DEVICE void add_head(Sum& gradient, int64_t h) {
    load_row_terms<Arithmetic>(p_, chunk_, h, memory_.factor, memory_.delta);
    Sum scores;
    make_scores(scores, p_, chunk_, h, memory_);
    scores.for_each([&](int t, int, T& x) { x *= memory_.factor[t]; });
    add_weighted<true>(gradient, scores, rows_of(p_.grad_out, chunk_.b, h, chunk_.live, p_.Dv),
                       chunk_.begin, this->column0_, memory_);
  }
};

template <class Block, class Arithmetic>
ATTN_DEVICE void run_key_gradients(const LinearCall& p) {
  ATTN_SHARED(shared);
  if constexpr (!Arithmetic::kTensor || kTensorCores) Block(p, shared).run();
}
template <class Arithmetic, bool kChannel>
__global__ void __launch_bounds__(Arithmetic::kThreads, 2)
    linear_keys_kernel(const __grid_constant__ LinearCall p) {
  run_key_gradients<LinearKeys<Arithmetic, kChannel>, Arithmetic>(p);
}
template <class Arithmetic, bool kChannel>
__global__ void __launch_bounds__(Arithmetic::kThreads, 2)
    linear_values_kernel(const __grid_constant__ LinearCall p) {
  run_key_gradients<LinearValues<Arithmetic, kChannel>, Arithmetic>(p);
}

}  // namespace attn::cuda
