#include "bindings/attention_cuda.h"

#include <algorithm>
#include <cmath>

#include "bindings/block_table_cuda.h"
#include "bindings/device_tensor_cuda.h"
#include "bindings/mask.h"
#include "cuda/attention.h"
#include "cuda/elementwise.h"

namespace attn::cuda {

namespace {

// The arguments that both directions share.
struct Arguments {
  const Tensor &query, &key, &value;
  MaskArguments mask;
  const OptionalTensor &bias, &sinks, &alibi_slopes;
  double scale, softcap, dropout_p;
  const OptionalTensor& dropout_seed;

  bool beside_query(const Tensor& t) const { return on_same_device(t, query); }
  bool is_double() const { return query.scalar_type() == ScalarType::Double; }
};

const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

bool full_or_one(int64_t size, int64_t full) { return size == full || size == 1; }

// A view of (H,) or (B, H) as (1 or B, H, 1, 1).
View head_view(const Tensor& t) {
  View view = view_of(t);
  if (t.dim() == 1) view.stride[1] = view.stride[0], view.stride[0] = 0;
  return view;
}

void check_input(const char* name, const Tensor& t, const Arguments& a) {
  check(
      a.beside_query(t) && t.dim() == 4 && is_floating(t.scalar_type()) &&
          t.scalar_type() == a.query.scalar_type(),
      name,
      ": expected a 4-D tensor of one of float32, float64, bfloat16, float16, of query's dtype and "
      "on its device, got ",
      describe(t));
}

void fill_shapes(const Arguments& a, AttentionCall& p) {
  check_input("query", a.query, a);
  check_input("key", a.key, a);
  check_input("value", a.value, a);
  const Sizes q = sizes_of(a.query), k = sizes_of(a.key), v = sizes_of(a.value);
  p.B = q[0], p.Hq = q[1], p.Lq = q[2], p.D = q[3];
  p.Hkv = k[1], p.Lk = k[2], p.Dv = v[3];
  check(k[0] == p.B && k[3] == p.D, "key: expected shape (", p.B, ", Hkv, Lk, ", p.D, "), got ",
        describe(a.key));
  check(v[0] == p.B && v[1] == p.Hkv && v[2] == p.Lk, "value: expected shape (", p.B, ", ", p.Hkv,
        ", ", p.Lk, ", Dv), got ", describe(a.value));
  check(p.Hkv > 0 ? p.Hq % p.Hkv == 0 : p.Hq == 0, "query: expected heads a multiple of the key's ",
        p.Hkv, ", got ", p.Hq);
  if (p.Hkv == 0) p.Hkv = p.Hq = 1, p.B = 0;
  p.query = view_of(a.query);
  p.key = view_of(a.key);
  p.value = view_of(a.value);
}

void fill_terms(const Arguments& a, AttentionCall& p) {
  check(std::isfinite(a.scale), "scale: expected a finite number, got ", a.scale);
  check(a.softcap >= 0 && std::isfinite(a.softcap), "softcap: expected a finite number >= 0, got ",
        a.softcap);
  p.score = {a.scale, a.softcap, p.Lk - p.Lq};
  if (a.bias) {
    const Sizes s = sizes_of(*a.bias), full{p.B, p.Hq, p.Lq, p.Lk};
    bool fits = a.bias->dim() == 4 && a.beside_query(*a.bias);
    for (int d = 0; d < 4; ++d) fits = fits && full_or_one(s[d], full[d]);
    const ScalarType type = a.bias->scalar_type();
    check(fits && (type == a.query.scalar_type() || type == ScalarType::Float),
          "bias: expected a 4-D tensor of query's dtype or float32 on its device, each size 1 or "
          "that "
          "of (",
          p.B, ", ", p.Hq, ", ", p.Lq, ", ", p.Lk, "), got ", describe(*a.bias));
    p.bias = view_of(*a.bias);
    std::copy(s.begin(), s.end(), p.bias_size);
  }
  if (a.sinks) {
    const Tensor& s = *a.sinks;
    check(a.beside_query(s) && s.dim() == 1 && s.size(0) == p.Hq && is_floating(s.scalar_type()),
          "sinks: expected floating shape (", p.Hq, ",) on query's device, got ", describe(s));
    p.sinks = head_view(s);
  }
  if (a.alibi_slopes) {
    const Tensor& s = *a.alibi_slopes;
    const bool per_head = s.dim() == 1 && s.size(0) == p.Hq;
    check(a.beside_query(s) && is_floating(s.scalar_type()) &&
              (per_head || (s.dim() == 2 && s.size(0) == p.B && s.size(1) == p.Hq)),
          "alibi_slopes: expected floating shape (", p.Hq, ",) or (", p.B, ", ", p.Hq,
          ") on query's device, got ", describe(s));
    p.alibi_slopes = head_view(s);
    p.alibi_per_batch = !per_head;
  }
}

const int64_t* batch_values(const char* name, const OptionalTensor& t, const Arguments& a,
                            int64_t B) {
  if (!t) return nullptr;
  check(a.beside_query(*t) && t->scalar_type() == ScalarType::Long && t->dim() == 1 &&
            t->size(0) == B && t->is_contiguous(),
        name, ": expected contiguous int64 of shape (", B, ",) on query's device, got ",
        describe(*t));
  return static_cast<const int64_t*>(t->data_ptr());
}

// Values on the device stay unread: kernels clamp lengths, and no offset leads them outside.
void fill_mask(const Arguments& a, AttentionCall& p) {
  const MaskArguments& m = a.mask;
  p.mask.Lq = p.Lq;
  p.mask.Lk = p.Lk;
  check(m.band.empty() || m.band.size() == 6, "band: expected 0 or 6 integers, got ",
        m.band.size());
  if (!m.band.empty()) {
    check(m.band[2] > 0, "band: expected a dilation of at least 1, got ", m.band[2]);
    check(m.band[4] == 0 && m.band[5] == 0,
          "band: expected no global tokens, which are not on CUDA");
    p.mask.lower = std::clamp(m.band[0], -kUnbounded, kUnbounded);
    p.mask.upper = std::clamp(m.band[1], -kUnbounded, kUnbounded);
    p.mask.dilation = m.band[2];
    p.mask.phase = modulo(m.band[3], m.band[2]);
  }
  check(!m.row_bounds, "row_bounds: expected None, this version has no kernels for it");
  if (!m.block_table.empty())
    p.mask.table = device_table(m.block_table, p.B, p.Hq, p.Lq, p.Lk, a.query);
  p.mask.band_offset = batch_values("band_offset", m.band_offset, a, p.B);
  p.mask.key_lengths = batch_values("key_lengths", m.key_lengths, a, p.B);
  if (!m.mask_bits) return;
  const Tensor& bits = *m.mask_bits;
  const Sizes size = sizes_of(bits);
  check(a.beside_query(bits) && bits.scalar_type() == ScalarType::Long && bits.dim() == 4 &&
            full_or_one(size[0], p.B) && full_or_one(size[1], p.Hq) && full_or_one(size[2], p.Lq) &&
            size[3] == (p.Lk + 63) / 64,
        "mask_bits: expected int64 of shape (", p.B, " or 1, ", p.Hq, " or 1, ", p.Lq, " or 1, ",
        (p.Lk + 63) / 64, ") on query's device, got ", describe(bits));
  check(size[3] <= 1 || bits.stride(3) == 1, "mask_bits: expected the words of a row side by side");
  p.mask.bits = static_cast<const uint64_t*>(bits.data_ptr());
  p.mask.bits_stride_b = size[0] == 1 ? 0 : bits.stride(0);
  p.mask.bits_stride_h = size[1] == 1 ? 0 : bits.stride(1);
  p.mask.bits_stride_q = size[2] == 1 ? 0 : bits.stride(2);
}

Dropout dropout_of(double p) {
  check(p >= 0 && p <= 1, "dropout_p: expected 0 to 1, got ", p);
  Dropout dropout;
  if (p == 0) return dropout;
  dropout.threshold =
      static_cast<uint32_t>(std::min(4294967295.0, std::nearbyint(p * 4294967296.0)));
  dropout.all = p == 1;
  dropout.keep_scale = dropout.all ? 0 : 1 / (1 - p);
  return dropout;
}

const int64_t* seed_pointer(const Tensor& seed) {
  check(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
        "dropout_seed: expected one int64, got ", describe(seed));
  return static_cast<const int64_t*>(seed.data_ptr());
}

void fill_dropout(const Arguments& a, AttentionCall& p) {
  p.dropout = dropout_of(a.dropout_p);
  if (!p.dropout.active()) return;
  check(a.dropout_seed && a.beside_query(*a.dropout_seed),
        "dropout_seed: expected one int64 on query's device with dropout_p > 0");
  p.dropout_seed = seed_pointer(*a.dropout_seed);
}

void fill(const char* op, const Arguments& a, AttentionCall& p) {
  check_no_derivative(
      op, {&a.query, &a.key, &a.value, pointer(a.bias), pointer(a.sinks), pointer(a.alibi_slopes)});
  fill_shapes(a, p);
  fill_terms(a, p);
  fill_mask(a, p);
  fill_dropout(a, p);
}

std::tuple<Tensor, Tensor> forward(const char* op, const Arguments& a) {
  AttentionCall p;
  fill(op, a, p);
  const DeviceScope device(a.query);
  const Sizes size = sizes_of(a.query);
  Tensor out = empty_heads_on(a.query, {size[0], size[1], size[2], p.Dv});
  Tensor lse =
      empty_on(a.query, {size[0], size[1], size[2]}, accumulator_of(a.query.scalar_type()));
  p.out = view_of(out);
  p.lse = view_of(lse);
  (a.is_double() ? attention_forward<double> : attention_forward<float>)(p, device.stream());
  return {out, lse};
}

void fill_results(const Arguments& a, const Tensor& grad_out, const OptionalTensor& grad_lse,
                  const Tensor& out, const Tensor& lse, AttentionCall& p) {
  const Sizes size = sizes_of(a.query), full{size[0], size[1], size[2], p.Dv};
  const auto matches = [&](const Tensor& t) {
    return a.beside_query(t) && t.dim() == 4 && sizes_of(t) == full &&
           t.scalar_type() == a.query.scalar_type();
  };
  const auto matches_lse = [&](const Tensor& t) {
    return a.beside_query(t) && t.dim() == 3 &&
           sizes_of(t) == Sizes{size[0], size[1], size[2], 1} &&
           t.scalar_type() == accumulator_of(a.query.scalar_type());
  };
  check(matches(out), "out: expected what the forward operator gave, got ", describe(out));
  check(matches(grad_out), "grad_out: expected shape and dtype of out, got ", describe(grad_out));
  check(matches_lse(lse), "lse: expected what the forward operator gave, got ", describe(lse));
  if (grad_lse)
    check(matches_lse(*grad_lse), "grad_lse: expected shape and dtype of lse, got ",
          describe(*grad_lse));
  p.out = view_of(out);
  p.grad_out = view_of(grad_out);
  p.lse = view_of(lse);
  if (grad_lse) p.grad_lse = view_of(*grad_lse);
}

// The gradients in the operator's order, empty where not asked for.
std::vector<Tensor> make_gradients(const Arguments& a, const std::vector<bool>& needs,
                                   AttentionCall& p) {
  std::vector<Tensor> gradients;
  const auto none = [&](const Tensor& like) {
    gradients.push_back(empty_on(a.query, {0}, like.scalar_type()));
  };
  const Tensor* inputs[3] = {&a.query, &a.key, &a.value};
  View* views[3] = {&p.dq, &p.dk, &p.dv};
  for (int i = 0; i < 3; ++i) {
    if (!needs[i]) {
      none(*inputs[i]);
      continue;
    }
    gradients.push_back(empty_heads_on(*inputs[i], sizes_of(*inputs[i])));
    *views[i] = view_of(gradients.back());
  }
  const OptionalTensor* terms[3] = {&a.bias, &a.sinks, &a.alibi_slopes};
  View* term_views[3] = {&p.dbias, &p.dsinks, &p.dalibi_slopes};
  for (int i = 0; i < 3; ++i) {
    const OptionalTensor& term = *terms[i];
    if (!term || !needs[3 + i]) {
      none(term ? *term : a.query);
      continue;
    }
    const auto sizes = term->sizes();
    gradients.push_back(empty_on(a.query, {sizes.begin(), sizes.end()}, term->scalar_type()));
    *term_views[i] = i == 0 ? view_of(gradients.back()) : head_view(gradients.back());
  }
  return gradients;
}

// What a backward call needs for itself; alive until its kernels are launched, as the allocator
// hands memory out in the order of the stream.
std::vector<Tensor> make_workspace(const Arguments& a, AttentionCall& p) {
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

std::tuple<Tensor, Tensor> attention_forward(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::vector<int64_t>& band,
    const OptionalTensor& band_offset, const OptionalTensor& key_lengths,
    const OptionalTensor& mask_bits, const OptionalTensor& row_bounds,
    const std::vector<Tensor>& block_table, const OptionalTensor& bias, const OptionalTensor& sinks,
    const OptionalTensor& alibi_slopes, double scale, double softcap, double dropout_p,
    const OptionalTensor& dropout_seed) {
  return forward("_attention_forward",
                 {query,
                  key,
                  value,
                  {band, band_offset, key_lengths, mask_bits, row_bounds, block_table},
                  bias,
                  sinks,
                  alibi_slopes,
                  scale,
                  softcap,
                  dropout_p,
                  dropout_seed});
}

std::tuple<Tensor, Tensor> attention(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::vector<int64_t>& band,
    const OptionalTensor& band_offset, const OptionalTensor& key_lengths,
    const OptionalTensor& mask_bits, const OptionalTensor& row_bounds,
    const std::vector<Tensor>& block_table, const OptionalTensor& bias, const OptionalTensor& sinks,
    const OptionalTensor& alibi_slopes, std::optional<double> scale, double softcap,
    double dropout_p, const OptionalTensor& dropout_seed) {
  const double D = query.dim() == 4 ? static_cast<double>(query.size(3)) : 1;
  return forward("attention", {query,
                               key,
                               value,
                               {band, band_offset, key_lengths, mask_bits, row_bounds, block_table},
                               bias,
                               sinks,
                               alibi_slopes,
                               scale.value_or(D > 0 ? 1 / std::sqrt(D) : 1),
                               softcap,
                               dropout_p,
                               dropout_seed});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query, const Tensor& key,
    const Tensor& value, const Tensor& out, const Tensor& lse, const std::vector<int64_t>& band,
    const OptionalTensor& band_offset, const OptionalTensor& key_lengths,
    const OptionalTensor& mask_bits, const OptionalTensor& row_bounds,
    const std::vector<Tensor>& block_table, const OptionalTensor& bias, const OptionalTensor& sinks,
    const OptionalTensor& alibi_slopes, double scale, double softcap, double dropout_p,
    const OptionalTensor& dropout_seed, const std::vector<bool>& needs) {
  const Arguments a{
      query,        key,
      value,        {band, band_offset, key_lengths, mask_bits, row_bounds, block_table},
      bias,         sinks,
      alibi_slopes, scale,
      softcap,      dropout_p,
      dropout_seed};
  check(needs.size() == 6, "needs: expected 6 booleans, got ", needs.size());
  check_no_derivative("_attention_backward", {&grad_out, pointer(grad_lse)});
  AttentionCall p;
  fill("_attention_backward", a, p);
  fill_results(a, grad_out, grad_lse, out, lse, p);
  const DeviceScope device(query);
  const std::vector<Tensor> g = make_gradients(a, needs, p);
  const std::vector<Tensor> workspace = make_workspace(a, p);
  const auto run =
      a.is_double() ? cuda::attention_backward<double> : cuda::attention_backward<float>;
  run(p, device.stream());
  return {g[0], g[1], g[2], g[3], g[4], g[5]};
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
  dropout_keep(KeepCall{dropout_of(dropout_p), seed_pointer(dropout_seed),
                        static_cast<bool*>(keep.data_ptr()), B, H, Lq, Lk},
               device.stream());
  return keep;
}

}  // namespace attn::cuda
