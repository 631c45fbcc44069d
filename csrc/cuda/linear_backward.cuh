// Linear attention backward (csrc/README.md): the states before the chunks and their gradients
// behind them, then all chunks at once.
#pragma once

#include "cuda/linear_keys.cuh"
#include "cuda/linear_queries.cuh"
#include "cuda/linear_rows.cuh"
#include "cuda/linear_states.cuh"

namespace attn::cuda {

// Those of linear_forward.cuh.
template <class Arithmetic>
void linear_states(const LinearCall& p, Stream stream);
template <class Arithmetic>
void linear_outputs(const LinearCall& p, Stream stream);

// ddecay of a chunk: <S, R> before it, plus what the earlier tokens of the chunk add. A block takes
// a chunk of a state head, a thread a channel, or a token where channels share a decay.
template <class T>
class DecayGradients {
  const LinearCall& p_;
  const int64_t hs_;
  const LinearChunk chunk_;
  const int64_t terms_, column_blocks_;

 public:
  ATTN_DEVICE explicit DecayGradients(const LinearCall& p)
      : p_(p),
        hs_(blockIdx.x % p.Hs),
        chunk_(chunk_of_slot(p, blockIdx.x / p.Hs, p.Lk, false)),
        terms_(p.channel_decay() ? p.D : p.blocks_of(p.D)),
        column_blocks_(max64(p.blocks_of(p.Dv), 1)) {}

  ATTN_DEVICE void run(double* shared) const {
    if (p_.channel_decay())
      for (int64_t d = threadIdx.x; d < p_.D; d += kThreads) run_channel(d);
    else
      run_tokens(shared, shared + kTile);
  }

 private:
  ATTN_DEVICE double dot(int64_t d) const {
    const T* dots =
        static_cast<const T*>(p_.decay_dots) + (chunk_.slot * p_.Hs + hs_) * column_blocks_ * p_.D;
    double sum = 0;
    for (int64_t block = 0; block < column_blocks_; ++block) sum += dots[block * p_.D + d];
    return sum;
  }
  // phi(k) dphi(k) - phi(q) dphi(q)
  ATTN_DEVICE double term(int64_t i, int64_t n) const {
    double sum =
        static_cast<const T*>(p_.key_terms)[((chunk_.b * p_.Hs + hs_) * p_.Lk + i) * terms_ + n];
    for (int64_t g = 0; g < p_.group(); ++g) {
      const int64_t h = hs_ * p_.group() + g;
      sum -=
          static_cast<const T*>(p_.query_terms)[((chunk_.b * p_.H + h) * p_.Lk + i) * terms_ + n];
    }
    return sum;
  }
  ATTN_DEVICE void store(int64_t i, int64_t d, double x) const {
    store_element(p_.ddecay.at(chunk_.b, hs_, i, d), p_.ddecay.dtype, i < chunk_.live ? x : 0.0);
  }

  ATTN_DEVICE void run_channel(int64_t d) const {
    double sum = chunk_.empty() ? 0 : dot(d);
    for (int64_t i = chunk_.begin; i < chunk_.stop; ++i) {
      store(i, d, sum);
      if (i < chunk_.live) sum += term(i, d);
    }
  }
  ATTN_DEVICE void run_tokens(double* terms, double* dots) const {
    const int t = static_cast<int>(threadIdx.x);
    const int64_t i = chunk_.begin + t;
    double sum = 0;
    for (int64_t d = t; !chunk_.empty() && d < p_.D; d += kThreads) sum += dot(d);
    sum = warp_sum(sum);
    if (lane_in_warp() == 0) dots[t / 32] = sum;
    if (t < p_.edge) {
      terms[t] = 0;
      for (int64_t n = 0; i < chunk_.live && n < terms_; ++n) terms[t] += term(i, n);
    }
    __syncthreads();
    if (t >= p_.edge || i >= chunk_.stop) return;
    sum = 0;
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += dots[warp];
    for (int earlier = 0; earlier < t; ++earlier) sum += terms[earlier];
    store(i, 0, sum);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    decay_gradients_kernel(const __grid_constant__ LinearCall p) {
  ATTN_SHARED(shared);
  DecayGradients<T>(p).run(reinterpret_cast<double*>(shared));
}

template <class Arithmetic, bool kChannel>
void launch_gradients(const LinearCall& p, Stream stream) {
  constexpr size_t kBytes = ChunkMemory<Arithmetic, kChannel>::kBytes;
  const int64_t query_chunks = p.chunks_of(p.Lq), key_chunks = p.chunks_of(p.Lk);
  if (p.dquery || p.query_terms)
    launch(linear_queries_kernel<Arithmetic, kChannel>, query_chunks * p.H * p.blocks_of(p.D),
           Arithmetic::kThreads, kBytes, stream, p);
  if (p.dkey || p.key_terms)
    launch(linear_keys_kernel<Arithmetic, kChannel>, key_chunks * p.Hs * p.blocks_of(p.D),
           Arithmetic::kThreads, kBytes, stream, p);
  if (p.dvalue)
    launch(linear_values_kernel<Arithmetic, kChannel>, key_chunks * p.Hs * p.blocks_of(p.Dv),
           Arithmetic::kThreads, kBytes, stream, p);
}

// Everything after the feature map and before its derivative.
template <class Arithmetic>
void linear_backward_on(const LinearCall& p, Stream stream) {
  using T = typename Arithmetic::Sum;
  linear_states<Arithmetic>(p, stream);
  if (p.exact_out) {
    LinearCall exact = p;
    exact.out = p.exact_out;
    exact.denominator = exact.exact_out = exact.grad_out = View();
    linear_outputs<Arithmetic>(exact, stream);
  }
  launch_row_terms<T>(p, stream);
  launch_states<Arithmetic, true>(p, stream);
  if (p.channel_decay())
    launch_gradients<Arithmetic, true>(p, stream);
  else
    launch_gradients<Arithmetic, false>(p, stream);
  if (p.ddecay)
    launch(decay_gradients_kernel<T>, p.chunks_of(p.Lk) * p.Hs, kThreads,
           (kTile + kThreads / 32) * sizeof(double), stream, p);
}

// The same on tensor cores; false, and nothing done, where the device has none.
template <Dtype kDtype>
bool linear_tensor_backward(const LinearCall& p, Stream stream) {
  using Arithmetic = TensorArithmetic<kDtype>;
  if (architecture_of(linear_queries_kernel<Arithmetic, false>) < 80) return false;
  linear_backward_on<Arithmetic>(p, stream);
  return true;
}

extern template bool linear_tensor_backward<Dtype::kFloat16>(const LinearCall&, Stream);
extern template bool linear_tensor_backward<Dtype::kBFloat16>(const LinearCall&, Stream);

template <class T>
void linear_backward(const LinearCall& p, Stream stream) {
  map_features<T>(p, stream);
  const Dtype dtype = p.query.dtype;
  if (dtype == Dtype::kFloat16 && linear_tensor_backward<Dtype::kFloat16>(p, stream)) return;
  if (dtype == Dtype::kBFloat16 && linear_tensor_backward<Dtype::kBFloat16>(p, stream)) return;
  linear_backward_on<PlainArithmetic<T>>(p, stream);
}

}  // namespace attn::cuda
