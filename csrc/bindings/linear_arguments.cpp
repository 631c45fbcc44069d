#include "bindings/linear_arguments.h"

#include <algorithm>
#include <cmath>

namespace attn {

namespace {

void fill_shapes(const LinearArguments& a, LinearParams& p) {
  const char* names[3] = {"query", "key", "value"};
  const Tensor* inputs[3] = {&a.query, &a.key, &a.value};
  for (int i = 0; i < 3; ++i)
    check(on_same_device(*inputs[i], a.query) && inputs[i]->dim() == 4 &&
              is_floating(inputs[i]->scalar_type()) &&
              inputs[i]->scalar_type() == a.query.scalar_type(),
          names[i],
          ": expected a 4-D tensor of one of float32, float64, bfloat16, float16, of query's dtype "
          "and on its device, got ",
          describe(*inputs[i]));
  const Sizes q = sizes_of(a.query), k = sizes_of(a.key), v = sizes_of(a.value);
  p.B = q[0], p.Hq = q[1], p.Lq = q[2], p.D = q[3];
  p.Hk = k[1], p.Lk = k[2], p.Hv = v[1], p.Dv = v[3];
  check(p.D > 0, "query: expected a head dimension of at least 1, got ", describe(a.query));
  check(k[0] == p.B && k[3] == p.D, "key: expected shape (", p.B, ", Hk, Lk, ", p.D, "), got ",
        describe(a.key));
  check(v[0] == p.B && v[2] == p.Lk, "value: expected shape (", p.B, ", Hv, ", p.Lk, ", Dv), got ",
        describe(a.value));
  check(!a.causal || p.Lq == p.Lk, "key: expected query's length ", p.Lq, " where causal, got ",
        describe(a.key));
  p.Hs = std::max(p.Hk, p.Hv);
  p.H = std::max(p.Hq, p.Hs);
  const auto divides = [](int64_t heads, int64_t all) { return heads > 0 && all % heads == 0; };
  const bool empty = p.Hq == 0 && p.Hk == 0 && p.Hv == 0;
  check(
      empty ||
          (divides(p.Hq, p.H) && divides(p.Hs, p.H) && divides(p.Hk, p.Hs) && divides(p.Hv, p.Hs)),
      "query, key, value: expected numbers of heads that divide the largest, and of key and value "
      "one that divides the other, got ",
      p.Hq, ", ", p.Hk, ", ", p.Hv);
}

const int64_t* checked_integers(const char* name, const OptionalTensor& t, const Tensor& beside) {
  if (!t) return nullptr;
  check(on_same_device(*t, beside) && t->scalar_type() == ScalarType::Long && t->dim() == 1 &&
            t->is_contiguous(),
        name, ": expected contiguous int64 of one dimension on query's device, got ", describe(*t));
  return static_cast<const int64_t*>(t->data_ptr());
}

void fill_sequences(const LinearArguments& a, LinearParams& p, Values values) {
  p.sequences = p.B;
  p.key_lengths = checked_integers("key_lengths", a.key_lengths, a.query);
  p.cu_seqlens = checked_integers("cu_seqlens", a.cu_seqlens, a.query);
  check(!p.key_lengths || !p.cu_seqlens, "key_lengths: expected None with cu_seqlens");
  if (p.key_lengths) {
    check(a.key_lengths->size(0) == p.B, "key_lengths: expected shape (", p.B, ",), got ",
          describe(*a.key_lengths));
    for (int64_t b = 0; values == Values::kChecked && b < p.B; ++b)
      check(p.key_lengths[b] >= 0 && p.key_lengths[b] <= p.Lk, "key_lengths: expected 0 to ", p.Lk,
            ", got ", p.key_lengths[b]);
  }
  if (!p.cu_seqlens) return;
  p.sequences = a.cu_seqlens->size(0) - 1;
  check(p.B == 1 && p.Lq == p.Lk, "cu_seqlens: expected batch 1 and one length, got ",
        describe(a.query), " and ", describe(a.key));
  check(p.sequences >= 0, "cu_seqlens: expected at least one element");
  if (values == Values::kUnread) return;
  check(p.cu_seqlens[0] == 0 && p.cu_seqlens[p.sequences] == p.Lk,
        "cu_seqlens: expected a first element 0 and a last element ", p.Lk);
  for (int64_t i = 0; i < p.sequences; ++i)
    check(p.cu_seqlens[i] <= p.cu_seqlens[i + 1], "cu_seqlens: expected ascending elements, got ",
          p.cu_seqlens[i + 1], " after ", p.cu_seqlens[i]);
}

void fill_decay(const LinearArguments& a, LinearParams& p) {
  if (!a.decay) return;
  const Tensor& g = *a.decay;
  const Sizes s = sizes_of(g);
  const bool per_head = g.dim() == 1 && s[0] == p.Hs;
  const bool per_token = g.dim() >= 3 && s[0] == p.B && s[1] == p.Hs && s[2] == p.Lk;
  check(a.causal, "decay: expected None where not causal");
  check(on_same_device(g, a.query) && is_floating(g.scalar_type()) &&
            (per_head || (per_token && (g.dim() == 3 || (g.dim() == 4 && s[3] == p.D)))),
        "decay: expected floating shape (", p.Hs, ",), (", p.B, ", ", p.Hs, ", ", p.Lk, ") or (",
        p.B, ", ", p.Hs, ", ", p.Lk, ", ", p.D, ") on query's device, got ", describe(g));
  p.decay = view_of(g);
  p.decay_kind = per_head       ? DecayKind::kHead
                 : g.dim() == 3 ? DecayKind::kToken
                                : DecayKind::kChannel;
  if (per_head) p.decay.stride[1] = p.decay.stride[0], p.decay.stride[0] = 0;
}

void fill_states(const LinearArguments& a, LinearParams& p) {
  check(a.initial_state || !a.initial_normalizer,
        "initial_normalizer: expected None without initial_state");
  if (!a.initial_state) return;
  check(a.normalize == a.initial_normalizer.has_value(),
        "initial_normalizer: expected one exactly where normalize");
  check_state("initial_state", *a.initial_state, a.query, {p.sequences, p.Hs, p.D, p.Dv});
  p.initial = view_of(*a.initial_state);
  if (!a.normalize) return;
  check_state("initial_normalizer", *a.initial_normalizer, a.query, {p.sequences, p.Hs, p.D});
  p.initial_z = row_view(*a.initial_normalizer);
}

void fill_beta(const LinearArguments& a, LinearParams& p) {
  if (!a.beta) return;
  const Tensor& beta = *a.beta;
  check(on_same_device(beta, a.query) && is_floating(beta.scalar_type()) && beta.dim() == 3 &&
            sizes_of(beta) == Sizes{p.B, p.Hs, p.Lk, 1},
        "beta: expected floating shape (", p.B, ", ", p.Hs, ", ", p.Lk, ") on query's device, got ",
        describe(beta));
  p.beta = view_of(beta);
}

// Few heads are cut into parts: about 16 items then, of at least 512 tokens. (A part of the delta
// rule would have a whole matrix as its decay: share_out_delta.)
void fill_parts(const LinearArguments& a, LinearParams& p) {
  const int64_t heads = std::max<int64_t>(p.sequences * p.Hs, 1), L = std::max(p.Lq, p.Lk);
  const int64_t wanted = a.beta || heads >= 8 ? 1 : std::min(16 / heads, L / 512);
  p.part_tokens =
      round_up((L + std::max<int64_t>(wanted, 1) - 1) / std::max<int64_t>(wanted, 1), 48);
  p.parts = p.part_tokens > 0 ? std::max<int64_t>((L + p.part_tokens - 1) / p.part_tokens, 1) : 1;
}

}  // namespace

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

View row_view(const Tensor& t) {
  View view = view_of(t);
  view.stride[3] = view.stride[2], view.stride[2] = 0;
  return view;
}

void check_state(const char* name, const Tensor& t, const Tensor& beside,
                 const std::vector<int64_t>& sizes) {
  const auto got = t.sizes();
  check(on_same_device(t, beside) && is_floating(t.scalar_type()) &&
            std::equal(got.begin(), got.end(), sizes.begin(), sizes.end()),
        name, ": expected a floating tensor on query's device, one state (", sizes[2],
        sizes.size() == 4 ? ", Dv" : "", ") for each of ", sizes[0], " sequences and ", sizes[1],
        " heads, got ", describe(t));
}

void fill_linear(const char* op, const LinearArguments& a, LinearParams& p, Values values) {
  check_no_derivative(op, {&a.query, &a.key, &a.value, pointer(a.beta), pointer(a.decay),
                           pointer(a.initial_state), pointer(a.initial_normalizer)});
  check(a.feature_map >= 0 && a.feature_map < kFeatureMaps, "feature_map: expected 0 to ",
        kFeatureMaps - 1, ", got ", a.feature_map);
  check(std::isfinite(a.scale), "scale: expected a finite number, got ", a.scale);
  check(a.eps >= 0 && std::isfinite(a.eps), "eps: expected a finite number >= 0, got ", a.eps);
  fill_shapes(a, p);
  fill_sequences(a, p, values);
  p.map = static_cast<FeatureMap>(a.feature_map);
  p.causal = a.causal, p.normalize = a.normalize, p.scale = a.scale, p.eps = a.eps;
  fill_decay(a, p);
  fill_beta(a, p);
  fill_states(a, p);
  fill_parts(a, p);
  p.columns = p.block_columns = round_up(p.Dv, 16), p.width = round_up(p.D, 16);
  p.query = view_of(a.query), p.key = view_of(a.key), p.value = view_of(a.value);
}

}  // namespace attn
