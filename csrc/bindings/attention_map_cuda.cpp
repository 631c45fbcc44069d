#include "bindings/attention_arguments_cuda.h"
#include "bindings/attention_cuda.h"
#include "bindings/attention_map_arguments.h"
#include "bindings/device_tensor_cuda.h"
#include "cuda/attention_map.h"

namespace attn::cuda {

namespace {

// Contiguous; the values stay unread.
OptionalTensor chosen_rows(const OptionalTensor& rows, const Tensor& query) {
  if (!rows) return std::nullopt;
  check(on_same_device(*rows, query) && rows->scalar_type() == ScalarType::Long && rows->dim() == 1,
        "rows: expected int64 of one dimension on query's device, got ", describe(*rows));
  return torch::stable::contiguous(*rows);
}

// What a call needs for itself; alive until its kernels are launched, as the allocator hands memory
// out in the order of the stream.
std::vector<Tensor> make_workspace(const Tensor& query, AttentionMapCall& p) {
  std::vector<Tensor> tensors;
  tensors.push_back(empty_on(query, {2, p.B, p.Hq, p.Lq}, accumulator_of(query.scalar_type())));
  p.row_lse = tensors.back().data_ptr();
  p.chunks = attention_map_chunks(p);
  if (p.query_bins == 0) return tensors;
  tensors.push_back(empty_on(query, {p.B, p.Hq, p.bin_rows(), p.query_bins}, ScalarType::Double));
  torch::stable::zero_(tensors.back());
  p.bin_partial = static_cast<double*>(tensors.back().data_ptr());
  return tensors;
}

}  // namespace

AttentionMapResults AttentionOnCuda::map(const char* op, const AttentionArguments& a,
                                         const OptionalTensor& rows,
                                         const std::vector<int64_t>& bins) {
  AttentionMapCall p;
  const std::vector<Tensor> table = fill_attention_on_device(op, a, p);
  check_bins(bins, p.Lq, p.Lk);
  if (!bins.empty()) p.query_bins = bins[0], p.key_bins = bins[1];
  const DeviceScope device(a.query);
  const OptionalTensor chosen = chosen_rows(rows, a.query);
  if (chosen) {
    p.rows = static_cast<const int64_t*>(chosen->data_ptr());
    p.row_count = chosen->size(0);
  }
  const MapResults results(a.query, p.Lk, p.row_count, bins);
  results.fill_views(p);
  const std::vector<Tensor> workspace = make_workspace(a.query, p);
  const bool wide = a.query.scalar_type() == ScalarType::Double;
  (wide ? attention_map<double> : attention_map<float>)(p, device.stream());
  return {results.weights, results.binned, results.column_sums, results.entropy, results.lse};
}

}  // namespace attn::cuda
