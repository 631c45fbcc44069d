// Linear attention forward: a block computes a chunk of one head's outputs, edge columns of them,
// from the state before the chunk and the pairs in it (csrc/README.md).
#pragma once

#include "cuda/linear_rows.cuh"
#include "cuda/linear_scores.cuh"
#include "cuda/linear_states.cuh"

namespace attn::cuda {

template <class Arithmetic, bool kChannel>
class LinearOutputs {
  using T = typename Arithmetic::Sum;
  using Memory = ChunkMemory<Arithmetic, kChannel>;
  static constexpr int kEdge = Arithmetic::kEdge;
  static constexpr int kSlices = Arithmetic::kThreads / kEdge;  // threads that share a row

  const LinearCall& p_;
  const Memory memory_;
  int64_t h_, hs_, c0_;
  LinearChunk chunk_;
  T z_product_ = 0;  // this thread's share of q . z of row threadIdx.x / kSlices

 public:
  ATTN_DEVICE LinearOutputs(const LinearCall& p, unsigned char* shared) : p_(p), memory_(shared) {
    int64_t item = blockIdx.x;
    const int64_t column_blocks = max64(p.blocks_of(p.Dv), 1);
    c0_ = item % column_blocks * kEdge, item /= column_blocks;
    h_ = item % p.H, hs_ = h_ / p.group();
    chunk_ = chunk_of_slot(p, item / p.H, p.Lq, true);
  }

  ATTN_DEVICE void run() {
    if (chunk_.begin >= chunk_.stop) return;
    ChunkSum<Arithmetic> out, scores;
    out.clear();
    if (!chunk_.empty()) {
      if (!kChannel && p_.decay) memory_.decays.load(p_, chunk_, hs_, 0);
      if (p_.causal) make_scores(scores, p_, chunk_, h_, memory_);
      add_state(out);
      find_factors(scores);
      out.for_each([&](int t, int, T& x) { x *= memory_.factor[t] * from_start(t); });
      if (p_.causal) {
        scores.for_each([&](int t, int, T& x) { x *= memory_.factor[t]; });
        add_weighted<false>(out, scores, value_rows(p_, chunk_.b, hs_, chunk_.live), chunk_.begin,
                            c0_, memory_);
      }
      if (no_keys_at_all(p_, chunk_.sequence)) out.clear();
    }
    store_chunk(out, p_.out, chunk_, h_, c0_, p_.Dv);
    if (p_.denominator && c0_ == 0) store_padded_denominators();
  }

 private:
  ATTN_DEVICE T from_start(int t) const {
    if constexpr (kChannel)
      return 1;
    else
      return p_.decay ? memory_.decays.from_start(t) : T(1);
  }

  // out += queries (faded channel by channel) times the state before the chunk
  ATTN_DEVICE void add_state(ChunkSum<Arithmetic>& out) {
    const StateMemory<T> state = chunk_state<T>(p_, p_.chunk_states, chunk_, hs_);
    const Rows queries = query_rows(p_, chunk_.b, h_, chunk_.live);
    ChunkSum<Arithmetic> product;
    for (int64_t d0 = 0; d0 < p_.D; d0 += kEdge) {
      __syncthreads();
      memory_.first.load(queries, chunk_.begin, d0);
      if constexpr (kChannel) {
        memory_.decays.load(p_, chunk_, hs_, d0);
        memory_.first.wait();
        __syncthreads();
        memory_.decays.fade_from_start(memory_.first);
      }
      const T scale =
          memory_.second.load_scaled(state.block(d0, c0_), p_.Dv, columns_from(d0, p_.D, kEdge),
                                     columns_from(c0_, p_.Dv, kEdge));
      memory_.first.wait();
      __syncthreads();
      product.clear();
      add_product<false, false>(product, memory_.first, memory_.second,
                                depth_from(d0, p_.D, kEdge));
      out.add(product, scale);
      if (p_.normalize) add_z(state.z() + d0, columns_from(d0, p_.D, kEdge));
    }
  }
  ATTN_DEVICE void add_z(const T* z, int columns) {
    const int t = static_cast<int>(threadIdx.x) / kSlices;
    for (int d = static_cast<int>(threadIdx.x) % kSlices; d < columns; d += kSlices)
      z_product_ += memory_.first.get(t, d) * z[d];
  }

  // What a row of outputs is multiplied by: the scale, or 1 / denominator.
  ATTN_DEVICE void find_factors(ChunkSum<Arithmetic>& scores) {
    T* factor = memory_.factor;
    if (!p_.normalize) {
      if (threadIdx.x < kEdge) factor[threadIdx.x] = static_cast<T>(p_.scale);
      __syncthreads();
      return;
    }
    const int t = static_cast<int>(threadIdx.x) / kSlices;
    T sum = z_product_;
    ATTN_UNROLL
    for (int by = 1; by < kSlices; by *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, by);
    if (threadIdx.x % kSlices == 0) factor[t] = sum * from_start(t) + static_cast<T>(p_.eps);
    __syncthreads();
    if (p_.causal) {
      scores.for_each_row_sum([&](int row, T x) { factor[row] += x; });
      __syncthreads();
    }
    if (threadIdx.x < kEdge) {
      const T denominator = factor[threadIdx.x];
      const int64_t i = chunk_.begin + threadIdx.x;
      if (c0_ == 0 && p_.denominator && i < chunk_.live)
        store_element(p_.denominator.at(chunk_.b, h_, i), p_.denominator.dtype, denominator);
      factor[threadIdx.x] = 1 / denominator;
    }
    __syncthreads();
  }
  ATTN_DEVICE void store_padded_denominators() const {
    const int64_t i = chunk_.begin + threadIdx.x;
    if (threadIdx.x < kEdge && i >= chunk_.live && i < chunk_.stop)
      store_element(p_.denominator.at(chunk_.b, h_, i), p_.denominator.dtype, T(0));
  }
};

template <class Arithmetic, bool kChannel>
__global__ void __launch_bounds__(Arithmetic::kThreads)
    linear_outputs_kernel(const __grid_constant__ LinearCall p) {
  ATTN_SHARED(shared);
  if constexpr (!Arithmetic::kTensor || kTensorCores)
    LinearOutputs<Arithmetic, kChannel>(p, shared).run();
}

template <class Arithmetic>
void linear_outputs(const LinearCall& p, Stream stream) {
  const int64_t blocks = p.chunks_of(p.Lq) * p.H * max64(p.blocks_of(p.Dv), 1);
  if (p.channel_decay())
    launch(linear_outputs_kernel<Arithmetic, true>, blocks, Arithmetic::kThreads,
           ChunkMemory<Arithmetic, true>::kBytes, stream, p);
  else
    launch(linear_outputs_kernel<Arithmetic, false>, blocks, Arithmetic::kThreads,
           ChunkMemory<Arithmetic, false>::kBytes, stream, p);
}

template <class Arithmetic>
void linear_states(const LinearCall& p, Stream stream) {
  launch_states<Arithmetic, false>(p, stream);
}

// The same on tensor cores; false, and nothing done, where the device has none.
template <Dtype kDtype>
bool linear_tensor_forward(const LinearCall& p, Stream stream) {
  using Arithmetic = TensorArithmetic<kDtype>;
  if (architecture_of(linear_outputs_kernel<Arithmetic, false>) < 80) return false;
  linear_states<Arithmetic>(p, stream);
  linear_outputs<Arithmetic>(p, stream);
  return true;
}

extern template bool linear_tensor_forward<Dtype::kFloat16>(const LinearCall&, Stream);
extern template bool linear_tensor_forward<Dtype::kBFloat16>(const LinearCall&, Stream);

template <class T>
void linear_forward(const LinearCall& p, Stream stream) {
  map_features<T>(p, stream);
  const Dtype dtype = p.query.dtype;
  if (dtype == Dtype::kFloat16 && linear_tensor_forward<Dtype::kFloat16>(p, stream)) return;
  if (dtype == Dtype::kBFloat16 && linear_tensor_forward<Dtype::kBFloat16>(p, stream)) return;
  linear_states<PlainArithmetic<T>>(p, stream);
  linear_outputs<PlainArithmetic<T>>(p, stream);
}

}  // namespace attn::cuda
