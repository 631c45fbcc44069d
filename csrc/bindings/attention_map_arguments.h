// What attention_map is asked for beside scores, and what it gives: the same on every device.
#pragma once

#include "bindings/tensor.h"

namespace attn {

struct MapResults {
  Tensor weights, binned, column_sums, entropy, lse;

  // Weights of `row_count` rows, zeroed, the other results not yet.
  MapResults(const Tensor& query, int64_t Lk, int64_t row_count, const std::vector<int64_t>& bins);

  template <class Params>
  void fill_views(Params& p) const {
    p.weights = view_of(weights), p.binned = view_of(binned);
    p.column_sums = view_of(column_sums), p.entropy = view_of(entropy), p.lse = view_of(lse);
  }
};

// bins are none, or two that fit the lengths.
void check_bins(const std::vector<int64_t>& bins, int64_t Lq, int64_t Lk);

}  // namespace attn
