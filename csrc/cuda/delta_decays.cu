// The delta rule's decays: their sums, and their gradient. That of a chunk's first token is <S, R>
// at its beginning, that of a later one less by what the tokens before it add (csrc/README.md).
#include "cuda/delta_call.cuh"
#include "cuda/delta_decays.h"

namespace attn::cuda {

// One thread for each chunk and column of the decay.
__global__ void __launch_bounds__(kThreads, 1)
    delta_decay_kernel(const __grid_constant__ DeltaCall p) {
  DeltaItem item{thread_item()};
  const int64_t columns = p.decay_columns(), d = item.take(columns), h = item.take(p.Hs);
  if (item.rest >= p.slots) return;
  const DeltaChunk chunk = DeltaChunk::at(p, item.rest);
  double sum = 0;
  double* to = p.log_decays + ((chunk.b * p.Hs + h) * p.Lk + chunk.first) * columns + d;
  for (int64_t t = 0; t < chunk.live; ++t) {
    constexpr double kLog2e = 1.4426950408889634, kNothing = -1e6;
    const double x =
        kLog2e * load_element<double>(p.decay.at(chunk.b, h, chunk.first + t, d), p.decay.dtype);
    sum += x < kNothing ? kNothing : x;
    to[t * columns] = sum;
  }
}

// Shared memory of a block of the gradient.
struct DeltaSums {
  static constexpr int kColumns = 64, kRows = 64;
  double totals[kColumns], terms[kRows];
};

template <class T>
class DeltaDecayGrads {
 public:
  static constexpr int kColumns = DeltaSums::kColumns, kWarps = kThreads / 32;

  ATTN_DEVICE DeltaDecayGrads(const DeltaCall& call, int64_t head, const DeltaChunk& of,
                              DeltaSums& shared)
      : p(call), head_(head), chunk_(of), memory_(shared) {
    const int64_t state = (head * p.slots + chunk_.slot) * p.D * p.Dv;
    state_ = static_cast<const T*>(p.states) + state;
    grad_ = static_cast<const T*>(p.state_grads) + state;
    const int64_t token = (chunk_.b * p.Hs + head) * p.Lk + chunk_.first;
    terms_ = static_cast<const T*>(p.decay_terms) + token * p.D;
  }

  // Channels: columns column .. column + kColumns - 1.
  ATTN_DEVICE void run_columns(int64_t column) const {
    const auto columns = static_cast<int>(min64(p.D - column, kColumns));
    for (int d = warp(); d < columns; d += kWarps) {
      const double sum = state_sum((column + d) * p.Dv, p.Dv);
      if (lane() == 0) memory_.totals[d] = sum;
    }
    __syncthreads();
    const auto d = static_cast<int>(threadIdx.x);
    if (d >= columns) return;
    double sum = memory_.totals[d];
    for (int t = 0; t < chunk_.rows; ++t) {
      store(t, column + d, t < chunk_.live ? sum : 0);
      if (t < chunk_.live) sum -= static_cast<double>(terms_[t * p.D + column + d]);
    }
  }

  // One decay for all columns.
  ATTN_DEVICE void run_tokens() const {
    const int64_t share = tiles_over(p.D, kWarps) * p.Dv, first = warp() * share;
    const double part = state_sum(first, max64(min64(p.D * p.Dv - first, share), 0));
    if (lane() == 0) memory_.totals[warp()] = part;
    for (int t = warp(); t < chunk_.live; t += kWarps) {
      double sum = 0;
      for (int64_t d = lane(); d < p.D; d += 32) sum += static_cast<double>(terms_[t * p.D + d]);
      sum = warp_sum(sum);
      if (lane() == 0) memory_.terms[t] = sum;
    }
    __syncthreads();
    const auto t = static_cast<int>(threadIdx.x);
    if (t >= chunk_.rows) return;
    double sum = 0;
    for (int part = 0; part < kWarps; ++part) sum += memory_.totals[part];
    for (int before = 0; before < min64(t, chunk_.live); ++before) sum -= memory_.terms[before];
    store(t, 0, t < chunk_.live ? sum : 0);
  }

 private:
  const DeltaCall& p;
  const int64_t head_;
  const DeltaChunk chunk_;
  DeltaSums& memory_;
  const T *state_, *grad_, *terms_;

  static ATTN_DEVICE int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static ATTN_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }
  // Of S R over n elements, by a warp.
  ATTN_DEVICE double state_sum(int64_t first, int64_t n) const {
    double sum = 0;
    for (int64_t e = first + lane(); chunk_.live > 0 && e < first + n; e += 32)
      sum += static_cast<double>(state_[e]) * static_cast<double>(grad_[e]);
    return warp_sum(sum);
  }
  ATTN_DEVICE void store(int t, int64_t d, double x) const {
    store_element(p.ddecay.at(chunk_.b, head_, chunk_.first + t, d), p.ddecay.dtype, x);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    delta_decay_grads_kernel(const __grid_constant__ DeltaCall p) {
  using Pass = DeltaDecayGrads<T>;
  ATTN_SHARED(shared);
  const int64_t tiles = p.channel_decay() ? tiles_over(p.D, Pass::kColumns) : 1;
  DeltaItem item{blockIdx.x};
  const int64_t column = item.take(tiles) * Pass::kColumns, head = item.take(p.Hs);
  const Pass pass(p, head, DeltaChunk::at(p, item.rest), *reinterpret_cast<DeltaSums*>(shared));
  if (p.channel_decay())
    pass.run_columns(column);
  else
    pass.run_tokens();
}

void delta_log_decays(const DeltaCall& p, Stream stream) {
  const int64_t columns = p.slots * p.Hs * p.decay_columns();
  launch(delta_decay_kernel, blocks_of_threads(columns), kThreads, 0, stream, p);
}

void delta_decay_grads(const DeltaCall& p, Stream stream) {
  const int64_t tiles = p.channel_decay() ? tiles_over(p.D, DeltaSums::kColumns) : 1;
  const bool is_double = p.query.dtype == Dtype::kFloat64;
  launch(is_double ? delta_decay_grads_kernel<double> : delta_decay_grads_kernel<float>,
         p.slots * p.Hs * tiles, kThreads, sizeof(DeltaSums), stream, p);
}

}  // namespace attn::cuda
