// Attention maps on CUDA devices, as host code calls them. Kernels run on `stream`, in order, and
// don't wait for it; std::runtime_error if one does not start.
#pragma once

#include "cuda/attention.h"

namespace attn::cuda {

// Of the results of AttentionCall lse, of its workspace row_lse.
struct AttentionMapCall : AttentionCall {
  const int64_t* rows = nullptr;  // (row_count,), not read by the host: beyond Lq there are none
  int64_t row_count = 0;
  int64_t query_bins = 0, key_bins = 0;
  View weights;      // (B, Hq, row_count, Lk), contiguous and zeroed
  View binned;       // (B, Hq, query_bins, key_bins)
  View column_sums;  // (B, Hq, Lk, 1)
  View entropy;      // (B, Hq, Lq, 1)

  // A block owns one of `chunks` runs of key tiles of one (b, h).
  int64_t chunks = 1;
  double* bin_partial = nullptr;  // [B, Hq, bin_rows(), query_bins], zeroed; bin k at k + chunk

  ATTN_HD int64_t bin_rows() const { return key_bins + chunks - 1; }
};

// The number of chunks: a function of the sizes.
int64_t attention_map_chunks(const AttentionCall& call);

// T: what is computed in, float or double.
template <class T>
void attention_map(const AttentionMapCall& call, Stream stream);

}  // namespace attn::cuda
