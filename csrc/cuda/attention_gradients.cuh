// The gradients of one tile's scores, with the names of csrc/README.md:
//   p = exp(s - lse),  dp = z (dout v^T),  ds = p (dp - delta)
#pragma once

#include "cuda/attention_scores.cuh"

namespace attn::cuda {

template <class T>
struct HeadGradients : HeadScores<T> {
  Rows value, grad_out;
  const T *lse, *lse_low, *delta;  // of the head's rows
  T keep_scale;

  ATTN_DEVICE HeadGradients(const AttentionCall& call, int64_t batch, int64_t head)
      : HeadScores<T>(call, batch, head),
        value(rows_of(call.value, batch, head / call.group(), call.Lk, call.Dv)),
        grad_out(rows_of(call.grad_out, batch, head, call.Lq, call.Dv)),
        lse(static_cast<const T*>(call.row_lse) + (batch * call.Hq + head) * call.Lq),
        lse_low(lse + call.B * call.Hq * call.Lq),
        delta(static_cast<const T*>(call.row_delta) + (batch * call.Hq + head) * call.Lq),
        keep_scale(static_cast<T>(call.dropout.keep_scale)) {}

  // weights = z p, and with kScores also ds and dx = ds * scale * (derivative of the softcap), of a
  // tile whose maps are made. All are 0 for pairs that don't count.
  template <bool kScores, class Memory>
  ATTN_DEVICE void tile(T (&weights)[kMicro][kMicro], T (&ds)[kMicro][kMicro],
                        T (&dx)[kMicro][kMicro], int64_t i0, int64_t j0, TileKind kind,
                        Memory& memory) const {
    if (kScores) row_products(ds, grad_out, i0, value, j0, memory);
    row_products(weights, this->query, i0, this->key, j0, memory);
    this->scores(weights, dx, i0, j0, kind, memory);
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      const int64_t i = i0 + thread_row() * kMicro + r;
      const bool inside = i < this->p.Lq;
      const T high = inside ? lse[i] : infinity<T>(), low = inside ? lse_low[i] : 0;
      const T mean = inside ? delta[i] : 0;
      const uint32_t kept = this->kept(i, j0);
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c) {
        const T s = weights[r][c];
        const bool counts = s != -infinity<T>();
        const T probability = counts ? std::exp(s - high - low) : 0;
        const T kept_scale = kept >> c & 1 ? keep_scale : 0;
        weights[r][c] = counts ? kept_scale * probability : 0;
        if (!kScores) continue;
        ds[r][c] = counts ? probability * (kept_scale * ds[r][c] - mean) : 0;
        dx[r][c] = counts ? ds[r][c] * dx[r][c] * this->scale : 0;
      }
    }
  }
};

}  // namespace attn::cuda
