// The passes of linear attention that go row by row, a warp each: feature maps there and back,
// gradients of shared heads, and what backward needs of each output.
#pragma once

#include "cuda/linear_chunks.cuh"

namespace attn::cuda {

struct FeatureMapCall {
  int64_t B = 0, heads = 0, L = 0, D = 0;
  FeatureMap map = FeatureMap::kIdentity;
  View from, to;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    map_features_kernel(const __grid_constant__ FeatureMapCall p) {
  const int64_t row = warp_item(), i = row % p.L, h = row / p.L % p.heads, b = row / p.L / p.heads;
  if (b >= p.B) return;
  const auto load = [&](int64_t d) { return load_element<T>(p.from.at(b, h, i, d), p.from.dtype); };
  T largest = -static_cast<T>(INFINITY), sum = 0;
  if (p.map == FeatureMap::kSoftmax) {
    for (int64_t d = lane_in_warp(); d < p.D; d += 32) largest = std::fmax(largest, load(d));
    largest = warp_maximum(largest);
    for (int64_t d = lane_in_warp(); d < p.D; d += 32) sum += std::exp(load(d) - largest);
    sum = warp_sum(sum);
  }
  for (int64_t d = lane_in_warp(); d < p.D; d += 32) {
    const T x = load(d);
    T phi = x > 0 ? x : x == x ? T(0) : x;
    if (p.map == FeatureMap::kSoftmax)
      phi = std::exp(x - largest) / sum;
    else if (p.map == FeatureMap::kElu)
      phi = x > 0 ? x + 1 : std::exp(x);
    store_element(p.to.at(b, h, i, d), p.to.dtype, phi);
  }
}

// query and key from what they are mapped from.
template <class T>
void map_features(const LinearCall& p, Stream stream) {
  if (!p.map_query) return;
  FeatureMapCall call{p.B, p.Hq, p.Lq, p.D, p.map, p.map_query, p.query};
  launch(map_features_kernel<T>, blocks_of_warps(call.B * call.heads * call.L), kThreads, 0, stream,
         call);
  call.heads = p.Hk, call.L = p.Lk, call.from = p.map_key, call.to = p.key;
  launch(map_features_kernel<T>, blocks_of_warps(call.B * call.heads * call.L), kThreads, 0, stream,
         call);
}

// row_factor and row_delta.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    row_terms_kernel(const __grid_constant__ LinearCall p) {
  const int64_t row = warp_item(), i = row % p.Lq, h = row / p.Lq % p.H, b = row / p.Lq / p.H;
  if (b >= p.B) return;
  const bool padded = !p.cu_seqlens && i >= live_queries(p, b).end;
  const bool nothing = padded || (!p.cu_seqlens && no_keys_at_all(p, b));
  T factor = nothing ? T(0) : static_cast<T>(p.scale), delta = 0;
  if (p.normalize && !nothing) {
    factor = 1 / load_element<T>(p.denominator.at(b, h, i), p.denominator.dtype);
    const View& out = p.exact_out ? p.exact_out : p.out;
    for (int64_t c = lane_in_warp(); c < p.Dv; c += 32)
      delta += load_element<T>(p.grad_out.at(b, h, i, c), p.grad_out.dtype) *
               load_element<T>(out.at(b, h, i, c), out.dtype);
    delta = warp_sum(delta);
  }
  if (lane_in_warp() != 0) return;
  static_cast<T*>(p.row_factor)[row] = factor;
  static_cast<T*>(p.row_delta)[row] = delta;
}
template <class T>
void launch_row_terms(const LinearCall& p, Stream stream) {
  launch(row_terms_kernel<T>, blocks_of_warps(p.B * p.H * p.Lq), kThreads, 0, stream, p);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    sum_rows_kernel(const __grid_constant__ LinearRowsCall p) {
  const int64_t row = warp_item(), i = row % p.L, h = row / p.L % p.heads, b = row / p.L / p.heads;
  if (b >= p.B) return;
  const auto sum = [&](int64_t d) {
    T result = 0;
    for (int64_t g = 0; g < p.group; ++g)
      result += load_element<T>(p.from.at(b, h * p.group + g, i, d), p.from.dtype);
    return result;
  };
  const auto phi = [&](int64_t d) { return load_element<T>(p.phi.at(b, h, i, d), p.phi.dtype); };
  T mean = 0;
  if (p.map == FeatureMap::kSoftmax) {
    for (int64_t d = lane_in_warp(); d < p.D; d += 32) mean += phi(d) * sum(d);
    mean = warp_sum(mean);
  }
  for (int64_t d = lane_in_warp(); d < p.D; d += 32) {
    T x = sum(d);
    if (p.map == FeatureMap::kSoftmax)
      x = phi(d) * (x - mean);
    else if (p.map == FeatureMap::kRelu)
      x = phi(d) > 0 ? x : T(0);
    else if (p.map == FeatureMap::kElu)
      x *= phi(d) < 1 ? phi(d) : T(1);
    store_element(p.to.at(b, h, i, d), p.to.dtype, x);
  }
}
template <class T>
void linear_sum_rows(const LinearRowsCall& p, Stream stream) {
  launch(sum_rows_kernel<T>, blocks_of_warps(p.B * p.heads * p.L), kThreads, 0, stream, p);
}

// A block sums a head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_tokens_kernel(const __grid_constant__ LinearRowsCall p) {
  ATTN_SHARED(shared);
  auto* sums = reinterpret_cast<double*>(shared);
  const int64_t h = blockIdx.x;
  double sum = 0;
  for (int64_t e = threadIdx.x; e < p.B * p.L; e += kThreads)
    sum += load_element<double>(p.from.at(e / p.L, h, e % p.L), p.from.dtype);
  sum = warp_sum(sum);
  if (lane_in_warp() == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kThreads / 32; ++warp) sum += sums[warp];
  store_element(p.to.at(0, h, 0), p.to.dtype, sum);
}
template <class T>
void linear_sum_tokens(const LinearRowsCall& p, Stream stream) {
  launch(sum_tokens_kernel<T>, p.heads, kThreads, kThreads / 32 * sizeof(double), stream, p);
}

}  // namespace attn::cuda
