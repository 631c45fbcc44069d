// The operators of the attention family with their schemas' arguments, on a backend: AttentionOnCpu
// or cuda::AttentionOnCuda.
#pragma once

#include <cmath>
#include <tuple>

#include "bindings/attention_gradients.h"

namespace attn {

// out, lse
using AttentionResults = std::tuple<Tensor, Tensor>;
// dq, dk, dv, dbias, dsinks, dalibi_slopes
using AttentionGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
// weights, binned, column_sums, entropy, lse
using AttentionMapResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The scale that none stands for.
inline double scale_or_default(std::optional<double> scale, const Tensor& query) {
  const double D = query.dim() == 4 ? static_cast<double>(query.size(3)) : 1;
  return scale.value_or(D > 0 ? 1 / std::sqrt(D) : 1);
}

#define ATTN_MASK_AND_TERMS                                                    \
  const std::vector<int64_t>&band, const OptionalTensor &band_offset,          \
      const OptionalTensor &key_lengths, const OptionalTensor &mask_bits,      \
      const OptionalTensor &row_bounds, const std::vector<Tensor>&block_table, \
      const OptionalTensor &bias, const OptionalTensor &sinks, const OptionalTensor &alibi_slopes
#define ATTN_DROPOUT double dropout_p, const OptionalTensor &dropout_seed
#define ATTN_ARGUMENTS(value, scale, dropout_p, dropout_seed)                          \
  {query,        key,                                                                  \
   value,        {band, band_offset, key_lengths, mask_bits, row_bounds, block_table}, \
   bias,         sinks,                                                                \
   alibi_slopes, scale,                                                                \
   softcap,      dropout_p,                                                            \
   dropout_seed}

template <class Backend>
struct AttentionOperators {
  static AttentionResults attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    ATTN_MASK_AND_TERMS, std::optional<double> scale,
                                    double softcap, ATTN_DROPOUT) {
    return Backend::forward("attention", ATTN_ARGUMENTS(value, scale_or_default(scale, query),
                                                        dropout_p, dropout_seed));
  }

  static AttentionResults forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                  ATTN_MASK_AND_TERMS, double scale, double softcap, ATTN_DROPOUT) {
    return Backend::forward("_attention_forward",
                            ATTN_ARGUMENTS(value, scale, dropout_p, dropout_seed));
  }

  static AttentionGradients backward(const Tensor& grad_out, const OptionalTensor& grad_lse,
                                     const Tensor& query, const Tensor& key, const Tensor& value,
                                     const Tensor& out, const Tensor& lse, ATTN_MASK_AND_TERMS,
                                     double scale, double softcap, ATTN_DROPOUT,
                                     const std::vector<bool>& needs) {
    return Backend::backward("_attention_backward",
                             ATTN_ARGUMENTS(value, scale, dropout_p, dropout_seed),
                             {grad_out, grad_lse, out, lse, needs});
  }

  static AttentionMapResults map(const Tensor& query, const Tensor& key, ATTN_MASK_AND_TERMS,
                                 std::optional<double> scale, double softcap,
                                 const OptionalTensor& rows, const std::vector<int64_t>& bins) {
    const OptionalTensor none;
    return Backend::map("attention_map",
                        ATTN_ARGUMENTS(key, scale_or_default(scale, query), 0.0, none), rows, bins);
  }
};

#undef ATTN_MASK_AND_TERMS
#undef ATTN_DROPOUT
#undef ATTN_ARGUMENTS

}  // namespace attn
