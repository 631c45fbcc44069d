// The operators of bindings/attention.cpp, with its schemas, for tensors on a CUDA device.
#pragma once

#include <tuple>

#include "bindings/tensor.h"

namespace attn::cuda {

std::tuple<Tensor, Tensor> attention(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::vector<int64_t>& band,
    const OptionalTensor& band_offset, const OptionalTensor& key_lengths,
    const OptionalTensor& mask_bits, const OptionalTensor& row_bounds,
    const std::vector<Tensor>& block_table, const OptionalTensor& bias, const OptionalTensor& sinks,
    const OptionalTensor& alibi_slopes, std::optional<double> scale, double softcap,
    double dropout_p, const OptionalTensor& dropout_seed);

std::tuple<Tensor, Tensor> attention_forward(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::vector<int64_t>& band,
    const OptionalTensor& band_offset, const OptionalTensor& key_lengths,
    const OptionalTensor& mask_bits, const OptionalTensor& row_bounds,
    const std::vector<Tensor>& block_table, const OptionalTensor& bias, const OptionalTensor& sinks,
    const OptionalTensor& alibi_slopes, double scale, double softcap, double dropout_p,
    const OptionalTensor& dropout_seed);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query, const Tensor& key,
    const Tensor& value, const Tensor& out, const Tensor& lse, const std::vector<int64_t>& band,
    const OptionalTensor& band_offset, const OptionalTensor& key_lengths,
    const OptionalTensor& mask_bits, const OptionalTensor& row_bounds,
    const std::vector<Tensor>& block_table, const OptionalTensor& bias, const OptionalTensor& sinks,
    const OptionalTensor& alibi_slopes, double scale, double softcap, double dropout_p,
    const OptionalTensor& dropout_seed, const std::vector<bool>& needs);

Tensor pack_mask_bits(const Tensor& keep);

Tensor dropout_keep(const Tensor& dropout_seed, double dropout_p, int64_t B, int64_t H, int64_t Lq,
                    int64_t Lk);

}  // namespace attn::cuda
