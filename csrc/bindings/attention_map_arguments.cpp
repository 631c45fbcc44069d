#include "bindings/attention_map_arguments.h"

namespace attn {

MapResults::MapResults(const Tensor& query, int64_t Lk, int64_t row_count,
                       const std::vector<int64_t>& bins)
    : weights(query), binned(query), column_sums(query), entropy(query), lse(query) {
  const int64_t B = query.size(0), Hq = query.size(1), Lq = query.size(2);
  const ScalarType type = accumulator_of(query.scalar_type());
  const auto bin = [&](size_t n) { return bins.empty() ? 0 : bins[n]; };
  weights = empty_on(query, {B, Hq, row_count, Lk}, type);
  binned = empty_on(query, {B, Hq, bin(0), bin(1)}, type);
  column_sums = empty_on(query, {B, Hq, Lk}, type);
  entropy = empty_on(query, {B, Hq, Lq}, type);
  lse = empty_on(query, {B, Hq, Lq}, type);
  torch::stable::zero_(weights);
}

void check_bins(const std::vector<int64_t>& bins, int64_t Lq, int64_t Lk) {
  check(bins.empty() || bins.size() == 2, "bins: expected 0 or 2 integers, got ", bins.size());
  if (bins.empty()) return;
  const auto fits = [](int64_t n, int64_t length) { return (n > 0 || length == 0) && n <= length; };
  check(fits(bins[0], Lq) && fits(bins[1], Lk), "bins: expected 1 to Lq = ", Lq,
        " and 1 to Lk = ", Lk, ", got ", bins[0], " and ", bins[1]);
}

}  // namespace attn
