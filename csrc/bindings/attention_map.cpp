// attention_ext::attention_map, and its kernels on the CPU.
#include <algorithm>

#include "bindings/attention_cpu.h"
#include "bindings/attention_map_arguments.h"
#include "bindings/threads.h"

namespace attn {

namespace {

std::vector<MapRow> chosen_rows(const OptionalTensor& rows, int64_t Lq) {
  std::vector<MapRow> chosen;
  if (!rows) return chosen;
  check(rows->is_cpu() && rows->scalar_type() == ScalarType::Long && rows->dim() == 1,
        "rows: expected int64 of one dimension on the CPU, got ", describe(*rows));
  const auto* row = static_cast<const int64_t*>(rows->data_ptr());
  for (int64_t n = 0; n < rows->size(0); ++n, row += rows->stride(0)) {
    check(0 <= *row && *row < Lq, "rows: expected 0 to Lq - 1 = ", Lq - 1, ", got ", *row);
    chosen.push_back({*row, n});
  }
  std::sort(chosen.begin(), chosen.end(),
            [](const MapRow& a, const MapRow& b) { return a.row < b.row; });
  return chosen;
}

// What the passes leave for each other, one allocation, carved twice.
void carve_workspace(AttentionMapParams& p, int64_t element, Arena& arena) {
  const int64_t heads = p.B * p.Hq;
  p.row_lse = arena.take<char>(2 * heads * p.Lq * element);
  p.entropy_partial = arena.take<double>(heads * p.chunks * p.Lq);
  p.bin_partial = arena.take<double>(heads * (p.key_bins + p.chunks - 1) * p.query_bins);
}

}  // namespace

AttentionMapResults AttentionOnCpu::map(const char* op, const AttentionArguments& a,
                                        const OptionalTensor& rows,
                                        const std::vector<int64_t>& bins) {
  AttentionMapParams p;
  BlockTableArrays built;
  fill_attention_on_cpu(op, a, p, built);
  p.Dv = 0;
  const std::vector<MapRow> chosen = chosen_rows(rows, p.Lq);
  p.rows = chosen.data();
  p.row_count = static_cast<int64_t>(chosen.size());
  check_bins(bins, p.Lq, p.Lk);
  if (!bins.empty()) p.query_bins = bins[0], p.key_bins = bins[1];
  const MapResults results(a.query, p.Lk, p.row_count, bins);
  results.fill_views(p);

  const AttentionKernels& kernels = attention_kernels(p);
  p.chunks = kernels.map.chunks(p);
  const int64_t element = a.query.scalar_type() == ScalarType::Double ? 8 : 4;
  Arena measure(nullptr);
  carve_workspace(p, element, measure);
  const Tensor workspace = empty({std::max<int64_t>(measure.used(), 1)}, ScalarType::Byte);
  Arena arena(workspace.data_ptr());
  carve_workspace(p, element, arena);

  run_items(kernels.forward, static_cast<const AttentionParams&>(p));
  run_items(kernels.map.rows, p);
  run_items(kernels.map.tiles, p);
  run_items(kernels.map.reduce, p);
  return {results.weights, results.binned, results.column_sums, results.entropy, results.lse};
}

STABLE_TORCH_LIBRARY_FRAGMENT(attention_ext, m) {
  m.def("attention_map(Tensor query, Tensor key, " ATTN_MASK_SCHEMA
        ", Tensor? bias, Tensor? sinks, Tensor? alibi_slopes, float? scale, float softcap, Tensor? "
        "rows, SymInt[] bins) -> (Tensor weights, Tensor binned, Tensor column_sums, Tensor "
        "entropy, Tensor lse)");
}

STABLE_TORCH_LIBRARY_IMPL(attention_ext, CPU, m) {
  m.impl("attention_map", TORCH_BOX(&AttentionOperators<AttentionOnCpu>::map));
}

}  // namespace attn
