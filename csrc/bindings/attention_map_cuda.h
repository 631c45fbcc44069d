// The operator of bindings/attention_map.cpp, with its schema, for tensors on a CUDA device.
#pragma once

#include <tuple>

#include "bindings/tensor.h"

namespace attn::cuda {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_map(
    const Tensor& query, const Tensor& key, const std::vector<int64_t>& band,
    const OptionalTensor& band_offset, const OptionalTensor& key_lengths,
    const OptionalTensor& mask_bits, const OptionalTensor& row_bounds,
    const std::vector<Tensor>& block_table, const OptionalTensor& bias, const OptionalTensor& sinks,
    const OptionalTensor& alibi_slopes, std::optional<double> scale, double softcap,
    const OptionalTensor& rows, const std::vector<int64_t>& bins);

}  // namespace attn::cuda
