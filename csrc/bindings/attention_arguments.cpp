#include "bindings/attention_arguments.h"

#include <cmath>

#include "bindings/dropout.h"
#include "cpu/dispatch.h"

namespace attn {

namespace {

const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

void check_input(const char* name, const Tensor& t, const Tensor& query) {
  check(t.is_cpu() && t.dim() == 4 && is_floating(t.scalar_type()) &&
            t.scalar_type() == query.scalar_type(),
        name,
        ": expected a 4-D CPU tensor of one of float32, float64, bfloat16, float16, the same as "
        "query's, got ",
        describe(t));
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
}

void fill_terms(const AttentionArguments& a, AttentionParams& p) {
  check(std::isfinite(a.scale), "scale: expected a finite number, got ", a.scale);
  check(a.softcap >= 0 && std::isfinite(a.softcap), "softcap: expected a finite number >= 0, got ",
        a.softcap);
  p.score = {a.scale, a.softcap, p.Lk - p.Lq};
  if (a.bias) {
    const Sizes s = sizes_of(*a.bias), full{p.B, p.Hq, p.Lq, p.Lk};
    bool fits = a.bias->dim() == 4;
    for (int d = 0; d < 4; ++d) fits = fits && (s[d] == full[d] || s[d] == 1);
    const ScalarType type = a.bias->scalar_type();
    check(fits && a.bias->is_cpu() && (type == a.query.scalar_type() || type == ScalarType::Float),
          "bias: expected a 4-D CPU tensor of query's dtype or float32, each size 1 or that of (",
          p.B, ", ", p.Hq, ", ", p.Lq, ", ", p.Lk, "), got ", describe(*a.bias));
    p.bias = view_of(*a.bias);
  }
  if (a.sinks) {
    check(a.sinks->is_cpu() && a.sinks->dim() == 1 && a.sinks->size(0) == p.Hq &&
              is_floating(a.sinks->scalar_type()),
          "sinks: expected floating shape (", p.Hq, ",) on the CPU, got ", describe(*a.sinks));
    p.sinks = view_of(*a.sinks);
    p.sinks.stride[1] = p.sinks.stride[0], p.sinks.stride[0] = 0;
  }
  if (a.alibi_slopes) {
    const Tensor& s = *a.alibi_slopes;
    const bool per_head = s.dim() == 1 && s.size(0) == p.Hq;
    check(s.is_cpu() && is_floating(s.scalar_type()) &&
              (per_head || (s.dim() == 2 && s.size(0) == p.B && s.size(1) == p.Hq)),
          "alibi_slopes: expected floating shape (", p.Hq, ",) or (", p.B, ", ", p.Hq,
          ") on the CPU, got ", describe(s));
    p.alibi_slopes = view_of(s);
    if (per_head) p.alibi_slopes.stride[1] = p.alibi_slopes.stride[0], p.alibi_slopes.stride[0] = 0;
  }
}

}  // namespace

void fill_attention(const char* op, const AttentionArguments& a, AttentionParams& p,
                    BlockTableArrays& built) {
  check_no_derivative(
      op, {&a.query, &a.key, &a.value, pointer(a.bias), pointer(a.sinks), pointer(a.alibi_slopes)});
  fill_shapes(a, p);
  fill_terms(a, p);
  p.dropout = checked_dropout(a.dropout_p, a.dropout_seed);
  p.mask = checked_mask(a.mask, p.B, p.Hq, p.Lq, p.Lk, built);
  p.query = view_of(a.query);
  p.key = view_of(a.key);
  p.value = view_of(a.value);
}

const AttentionKernels& attention_kernels(const AttentionParams& p) {
  return kernels().attention[static_cast<int>(p.query.dtype)];
}

}  // namespace attn
