// What linear attention and the delta rule are called with, on the way to the kernels.
#pragma once

#include "bindings/tensor.h"
#include "core/linear_params.h"

namespace attn {

struct LinearArguments {
  const Tensor &query, &key, &value;
  int64_t feature_map;
  bool causal;
  const OptionalTensor &beta, &decay;
  double scale;
  bool normalize;
  double eps;
  const OptionalTensor &key_lengths, &cu_seqlens, &initial_state, &initial_normalizer;
};

inline const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

int64_t round_up(int64_t n, int64_t step);

// A state's z (N, Hs, D) as the kernels see it, (N, Hs, 1, D).
View row_view(const Tensor& t);

// Throws unless t is one state, or z, for each sequence and head, on the device of `beside`.
void check_state(const char* name, const Tensor& t, const Tensor& beside,
                 const std::vector<int64_t>& sizes);

// Of key_lengths and cu_seqlens: on a device they stay there.
enum class Values { kChecked, kUnread };

// Checks everything, and fills all but the results.
void fill_linear(const char* op, const LinearArguments& a, LinearParams& p,
                 Values values = Values::kChecked);

}  // namespace attn
