#include "bindings/attention_cuda.h"

#include "bindings/attention_arguments_cuda.h"
#include "bindings/device_tensor_cuda.h"
#include "bindings/dropout.h"
#include "cuda/attention.h"
#include "cuda/elementwise.h"

namespace attn::cuda {

namespace {

bool is_double(const AttentionArguments& a) { return a.query.scalar_type() == ScalarType::Double; }

[[nodiscard]] std::vector<Tensor> fill(const char* op, const AttentionArguments& a,
                                       AttentionCall& p) {
  std::vector<Tensor> table = fill_attention_on_device(op, a, p);
  p.dropout_seed = attention_seed(a);
  return table;
}

// What the splits of a forward call find, where it is cut; alive until its kernels are launched, as
// the allocator hands memory out in the order of the stream.
std::vector<Tensor> make_split_workspace(const AttentionArguments& a, AttentionCall& p) {
  p.splits = plan_splits(p.B, p.Hq, p.Hkv, p.Lq, p.Lk);
  if (p.splits.count == 0) return {};
  const ScalarType type = accumulator_of(a.query.scalar_type());
  const Tensor out = empty_on(a.query, {p.splits.count, p.B, p.Hq, p.Lq, p.Dv}, type);
  const Tensor lse = empty_on(a.query, {p.splits.count, p.B, p.Hq, p.Lq}, type);
  p.split_out = out.data_ptr();
  p.split_lse = lse.data_ptr();
  return {out, lse};
}

// What a backward call needs for itself, alive as long.
std::vector<Tensor> make_workspace(const AttentionArguments& a, AttentionCall& p) {
  std::vector<Tensor> tensors;
  const auto allocate = [&](std::vector<int64_t> sizes, ScalarType type) {
    tensors.push_back(empty_on(a.query, sizes, type));
    return tensors.back().data_ptr();
  };
  const ScalarType type = accumulator_of(a.query.scalar_type());
  plan_attention_backward(p);
  p.row_lse = allocate({2, p.B, p.Hq, p.Lq}, type);
  p.row_delta = allocate({p.B, p.Hq, p.Lq}, type);
  if (p.dsinks)
    p.sink_partial =
        static_cast<double*>(allocate({p.B, p.Hq, p.plan.row_blocks}, ScalarType::Double));
  if (p.dalibi_slopes)
    p.alibi_partial =
        static_cast<double*>(allocate({p.B, p.Hq, p.plan.chunks}, ScalarType::Double));
  if (p.dbias && p.plan.bias_slots > 1) {
    const int64_t* size = p.bias_size;
    p.dbias_partial = allocate({p.plan.bias_slots, size[0], size[1], size[2], size[3]}, type);
  }
  return tensors;
}

}  // namespace

AttentionResults AttentionOnCuda::forward(const char* op, const AttentionArguments& a) {
  AttentionCall p;
  const std::vector<Tensor> table = fill(op, a, p);
  const DeviceScope device(a.query);
  const Sizes size = sizes_of(a.query);
  Tensor out = empty_heads({size[0], size[1], size[2], p.Dv}, a.query);
  Tensor lse =
      empty_on(a.query, {size[0], size[1], size[2]}, accumulator_of(a.query.scalar_type()));
  p.out = view_of(out);
  p.lse = view_of(lse);
  const std::vector<Tensor> workspace = make_split_workspace(a, p);
  (is_double(a) ? attention_forward<double> : attention_forward<float>)(p, device.stream());
  return {out, lse};
}

AttentionGradients AttentionOnCuda::backward(const char* op, const AttentionArguments& a,
                                             const AttentionGradArguments& g) {
  check_no_derivative(op, {&g.grad_out, g.grad_lse ? &*g.grad_lse : nullptr});
  AttentionCall p;
  const std::vector<Tensor> table = fill(op, a, p);
  fill_results(a, g, p);
  const DeviceScope device(a.query);
  const std::vector<Tensor> made = make_gradients(a, g.needs, p);
  const std::vector<Tensor> workspace = make_workspace(a, p);
  const auto run = is_double(a) ? attention_backward<double> : attention_backward<float>;
  run(p, device.stream());
  return {made[0], made[1], made[2], made[3], made[4], made[5]};
}

Tensor pack_mask_bits(const Tensor& keep) {
  check(keep.scalar_type() == ScalarType::Bool && keep.dim() >= 1,
        "keep: expected a bool tensor of at least one dimension, got ", describe(keep));
  const DeviceScope device(keep);
  const Tensor rows = torch::stable::contiguous(keep);
  auto sizes = std::vector<int64_t>(keep.sizes().begin(), keep.sizes().end());
  const int64_t Lk = sizes.back();
  sizes.back() = (Lk + 63) / 64;
  Tensor words = empty_on(keep, sizes, ScalarType::Long);
  pack_mask_bits(PackCall{static_cast<const bool*>(rows.data_ptr()),
                          static_cast<uint64_t*>(words.data_ptr()), Lk, words.numel()},
                 device.stream());
  return words;
}

Tensor dropout_keep(const Tensor& dropout_seed, double dropout_p, int64_t B, int64_t H, int64_t Lq,
                    int64_t Lk) {
  check(B >= 0 && H >= 0 && Lq >= 0 && Lk >= 0, "sizes: expected none below 0, got ", B, ", ", H,
        ", ", Lq, ", ", Lk);
  const DeviceScope device(dropout_seed);
  Tensor keep = empty_on(dropout_seed, {B, H, Lq, Lk}, ScalarType::Bool);
  dropout_keep(KeepCall{checked_dropout(dropout_p), checked_seed(dropout_seed, dropout_seed),
                        static_cast<bool*>(keep.data_ptr()), B, H, Lq, Lk},
               device.stream());
  return keep;
}

}  // namespace attn::cuda
