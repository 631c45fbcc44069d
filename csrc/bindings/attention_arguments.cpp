#include "bindings/attention_arguments.h"

#include <cmath>

#include "bindings/dropout.h"

namespace attn {

namespace {

const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

const char* tensor_beside(const Tensor& query) {
  return query.is_cpu() ? "CPU tensor" : "tensor on query's device";
}

void check_input(const char* name, const Tensor& t, const Tensor& query) {
  check(on_same_device(t, query) && t.dim() == 4 && is_floating(t.scalar_type()) &&
            t.scalar_type() == query.scalar_type(),
        name, ": expected a 4-D ", tensor_beside(query),
        " of one of float32, float64, bfloat16, float16, the same as query's, got ", describe(t));
}

void fill_shapes(const AttentionArguments& a, AttentionParams& p) {
  check_input("query", a.query, a.query);
  check_input("key", a.key, a.query);
  check_input("value", a.value, a.query);
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

void fill_bias(const Tensor& bias, const Tensor& query, AttentionParams& p) {
  const Sizes size = sizes_of(bias), full{p.B, p.Hq, p.Lq, p.Lk};
  bool fits = bias.dim() == 4 && on_same_device(bias, query);
  for (int d = 0; d < 4; ++d) fits = fits && (size[d] == full[d] || size[d] == 1);
  const ScalarType type = bias.scalar_type();
  check(fits && (type == query.scalar_type() || type == ScalarType::Float), "bias: expected a 4-D ",
        tensor_beside(query), " of query's dtype or float32, each size 1 or that of (", p.B, ", ",
        p.Hq, ", ", p.Lq, ", ", p.Lk, "), got ", describe(bias));
  p.bias = view_of(bias);
}

void fill_slopes(const Tensor& slopes, const Tensor& query, AttentionParams& p) {
  const bool per_head = slopes.dim() == 1 && slopes.size(0) == p.Hq;
  const bool per_batch = slopes.dim() == 2 && slopes.size(0) == p.B && slopes.size(1) == p.Hq;
  check(
      on_same_device(slopes, query) && is_floating(slopes.scalar_type()) && (per_head || per_batch),
      "alibi_slopes: expected floating shape (", p.Hq, ",) or (", p.B, ", ", p.Hq, ") ",
      place_of(query), ", got ", describe(slopes));
  p.alibi_slopes = head_view(slopes);
}

void fill_terms(const AttentionArguments& a, AttentionParams& p) {
  check(std::isfinite(a.scale), "scale: expected a finite number, got ", a.scale);
  check(a.softcap >= 0 && std::isfinite(a.softcap), "softcap: expected a finite number >= 0, got ",
        a.softcap);
  p.score = {a.scale, a.softcap, p.Lk - p.Lq};
  if (a.bias) fill_bias(*a.bias, a.query, p);
  if (const OptionalTensor& sinks = a.sinks) {
    check(on_same_device(*sinks, a.query) && sinks->dim() == 1 && sinks->size(0) == p.Hq &&
              is_floating(sinks->scalar_type()),
          "sinks: expected floating shape (", p.Hq, ",) ", place_of(a.query), ", got ",
          describe(*sinks));
    p.sinks = head_view(*sinks);
  }
  if (a.alibi_slopes) fill_slopes(*a.alibi_slopes, a.query, p);
}

}  // namespace

View head_view(const Tensor& t) {
  View view = view_of(t);
  if (t.dim() == 1) view.stride[1] = view.stride[0], view.stride[0] = 0;
  return view;
}

void fill_attention(const char* op, const AttentionArguments& a, AttentionParams& p) {
  check_no_derivative(
      op, {&a.query, &a.key, &a.value, pointer(a.bias), pointer(a.sinks), pointer(a.alibi_slopes)});
  fill_shapes(a, p);
  fill_terms(a, p);
  p.dropout = checked_dropout(a.dropout_p);
  p.mask = checked_mask(a.mask, p.B, p.Hq, p.Lq, p.Lk, a.query);
}

const int64_t* attention_seed(const AttentionArguments& a) {
  return a.dropout_p > 0 ? checked_seed(a.dropout_seed, a.query) : nullptr;
}

}  // namespace attn
