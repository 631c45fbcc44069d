// attention_ext::linear_attention and the raw operators under it, on the CPU.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "bindings/tensor.h"
#include "bindings/threads.h"
#include "cpu/dispatch.h"

namespace attn {

namespace {

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct Arguments {
  const Tensor &query, &key, &value;
  int64_t feature_map;
  bool causal;
  const OptionalTensor& decay;
  double scale;
  bool normalize;
  double eps;
  const OptionalTensor &key_lengths, &cu_seqlens, &initial_state, &initial_normalizer;
};

const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

int compute_index(const Tensor& query) { return query.scalar_type() == ScalarType::Double; }

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// A state's z (N, Hs, D) as the kernels see it, (N, Hs, 1, D).
View row_view(const Tensor& t) {
  View view = view_of(t);
  view.stride[3] = view.stride[2], view.stride[2] = 0;
  return view;
}

void fill_shapes(const Arguments& a, LinearParams& p) {
  const char* names[3] = {"query", "key", "value"};
  const Tensor* inputs[3] = {&a.query, &a.key, &a.value};
  for (int i = 0; i < 3; ++i)
    check(inputs[i]->is_cpu() && inputs[i]->dim() == 4 && is_floating(inputs[i]->scalar_type()) &&
              inputs[i]->scalar_type() == a.query.scalar_type(),
          names[i],
          ": expected a 4-D CPU tensor of one of float32, float64, bfloat16, float16, the same as "
          "query's, got ",
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

const int64_t* checked_integers(const char* name, const OptionalTensor& t) {
  if (!t) return nullptr;
  check(t->is_cpu() && t->scalar_type() == ScalarType::Long && t->dim() == 1 && t->is_contiguous(),
        name, ": expected contiguous int64 of one dimension on the CPU, got ", describe(*t));
  return static_cast<const int64_t*>(t->data_ptr());
}

void fill_sequences(const Arguments& a, LinearParams& p) {
  p.sequences = p.B;
  p.key_lengths = checked_integers("key_lengths", a.key_lengths);
  p.cu_seqlens = checked_integers("cu_seqlens", a.cu_seqlens);
  check(!p.key_lengths || !p.cu_seqlens, "key_lengths: expected None with cu_seqlens");
  if (p.key_lengths) {
    check(a.key_lengths->size(0) == p.B, "key_lengths: expected shape (", p.B, ",), got ",
          describe(*a.key_lengths));
    for (int64_t b = 0; b < p.B; ++b)
      check(p.key_lengths[b] >= 0 && p.key_lengths[b] <= p.Lk, "key_lengths: expected 0 to ", p.Lk,
            ", got ", p.key_lengths[b]);
  }
  if (!p.cu_seqlens) return;
  p.sequences = a.cu_seqlens->size(0) - 1;
  check(p.B == 1 && p.Lq == p.Lk, "cu_seqlens: expected batch 1 and one length, got ",
        describe(a.query), " and ", describe(a.key));
  check(p.sequences >= 0 && p.cu_seqlens[0] == 0 && p.cu_seqlens[p.sequences] == p.Lk,
        "cu_seqlens: expected a first element 0 and a last element ", p.Lk);
  for (int64_t i = 0; i < p.sequences; ++i)
    check(p.cu_seqlens[i] <= p.cu_seqlens[i + 1], "cu_seqlens: expected ascending elements, got ",
          p.cu_seqlens[i + 1], " after ", p.cu_seqlens[i]);
}

void fill_decay(const Arguments& a, LinearParams& p) {
  if (!a.decay) return;
  const Tensor& g = *a.decay;
  const Sizes s = sizes_of(g);
  const bool per_head = g.dim() == 1 && s[0] == p.Hs;
  const bool per_token = g.dim() >= 3 && s[0] == p.B && s[1] == p.Hs && s[2] == p.Lk;
  check(a.causal, "decay: expected None where not causal");
  check(g.is_cpu() && is_floating(g.scalar_type()) &&
            (per_head || (per_token && (g.dim() == 3 || (g.dim() == 4 && s[3] == p.D)))),
        "decay: expected floating shape (", p.Hs, ",), (", p.B, ", ", p.Hs, ", ", p.Lk, ") or (",
        p.B, ", ", p.Hs, ", ", p.Lk, ", ", p.D, ") on the CPU, got ", describe(g));
  p.decay = view_of(g);
  p.decay_kind = per_head       ? DecayKind::kHead
                 : g.dim() == 3 ? DecayKind::kToken
                                : DecayKind::kChannel;
  if (per_head) p.decay.stride[1] = p.decay.stride[0], p.decay.stride[0] = 0;
}

void check_state(const char* name, const Tensor& t, const std::vector<int64_t>& sizes) {
  const auto got = t.sizes();
  check(t.is_cpu() && is_floating(t.scalar_type()) &&
            std::equal(got.begin(), got.end(), sizes.begin(), sizes.end()),
        name, ": expected a floating CPU tensor, one state (", sizes[2],
        sizes.size() == 4 ? ", Dv" : "", ") for each of ", sizes[0], " sequences and ", sizes[1],
        " heads, got ", describe(t));
}

void fill_states(const Arguments& a, LinearParams& p) {
  check(a.initial_state || !a.initial_normalizer,
        "initial_normalizer: expected None without initial_state");
  if (!a.initial_state) return;
  check(a.normalize == a.initial_normalizer.has_value(),
        "initial_normalizer: expected one exactly where normalize");
  check_state("initial_state", *a.initial_state, {p.sequences, p.Hs, p.D, p.Dv});
  p.initial = view_of(*a.initial_state);
  if (!a.normalize) return;
  check_state("initial_normalizer", *a.initial_normalizer, {p.sequences, p.Hs, p.D});
  p.initial_z = row_view(*a.initial_normalizer);
}

// Few heads are cut into parts: about 16 items then, of at least 512 tokens.
void fill_parts(LinearParams& p) {
  const int64_t heads = std::max<int64_t>(p.sequences * p.Hs, 1), L = std::max(p.Lq, p.Lk);
  const int64_t wanted = heads >= 8 ? 1 : std::min(16 / heads, L / 512);
  p.part_tokens =
      round_up((L + std::max<int64_t>(wanted, 1) - 1) / std::max<int64_t>(wanted, 1), 48);
  p.parts = p.part_tokens > 0 ? std::max<int64_t>((L + p.part_tokens - 1) / p.part_tokens, 1) : 1;
}

void fill(const char* op, const Arguments& a, LinearParams& p) {
  check_no_derivative(op, {&a.query, &a.key, &a.value, pointer(a.decay), pointer(a.initial_state),
                           pointer(a.initial_normalizer)});
  check(a.feature_map >= 0 && a.feature_map < kFeatureMaps, "feature_map: expected 0 to ",
        kFeatureMaps - 1, ", got ", a.feature_map);
  check(std::isfinite(a.scale), "scale: expected a finite number, got ", a.scale);
  check(a.eps >= 0 && std::isfinite(a.eps), "eps: expected a finite number >= 0, got ", a.eps);
  fill_shapes(a, p);
  fill_sequences(a, p);
  p.map = static_cast<FeatureMap>(a.feature_map);
  p.causal = a.causal, p.normalize = a.normalize, p.scale = a.scale, p.eps = a.eps;
  fill_decay(a, p);
  fill_states(a, p);
  fill_parts(p);
  p.columns = round_up(p.Dv, 16), p.width = round_up(p.D, 16);
  p.query = view_of(a.query), p.key = view_of(a.key), p.value = view_of(a.value);
}

// The states at the borders of parts, and their memory.
Tensor run_states(LinearParams& p, int index) {
  const ScalarType type = index ? ScalarType::Double : ScalarType::Float;
  if (!p.needs_scan()) return empty({0}, type);
  Tensor states = empty({p.sequences, p.Hs, p.parts, p.state_size()}, type);
  p.part_states = states.data_ptr();
  run_items(kernels().linear_states[index], p);
  run_items(kernels().linear_scan[index], p);
  return states;
}

Results forward(const char* op, const Arguments& a) {
  LinearParams p;
  fill(op, a, p);
  const int index = compute_index(a.query);
  const ScalarType type = accumulator_of(a.query.scalar_type());
  Tensor out = empty_heads({p.B, p.H, p.Lq, p.Dv}, a.query);
  Tensor denominator =
      empty(p.normalize ? std::vector<int64_t>{p.B, p.H, p.Lq} : std::vector<int64_t>{0}, type);
  Tensor state = empty({p.sequences, p.Hs, p.D, p.Dv}, type);
  Tensor normalizer = empty(
      p.normalize ? std::vector<int64_t>{p.sequences, p.Hs, p.D} : std::vector<int64_t>{0}, type);
  p.out = view_of(out);
  p.state = view_of(state);
  if (p.normalize) p.denominator = view_of(denominator), p.state_z = row_view(normalizer);
  const Tensor states = run_states(p, index);
  run_items(kernels().linear_forward[index], p);
  return {out, denominator, state, normalizer};
}

#define ATTN_LINEAR_PARAMETERS                                                                   \
  const Tensor &query, const Tensor &key, const Tensor &value, int64_t feature_map, bool causal, \
      const OptionalTensor &decay, double scale, bool normalize, double eps,                     \
      const OptionalTensor &key_lengths, const OptionalTensor &cu_seqlens,                       \
      const OptionalTensor &initial_state, const OptionalTensor &initial_normalizer
#define ATTN_LINEAR_ARGUMENTS                                                                    \
  query, key, value, feature_map, causal, decay, scale, normalize, eps, key_lengths, cu_seqlens, \
      initial_state, initial_normalizer

Results linear_attention(ATTN_LINEAR_PARAMETERS) {
  return forward("linear_attention", {ATTN_LINEAR_ARGUMENTS});
}
Results linear_attention_forward(ATTN_LINEAR_PARAMETERS) {
  return forward("_linear_attention_forward", {ATTN_LINEAR_ARGUMENTS});
}

// One token; the state is written to.
Tensor linear_attention_step(const Tensor& query, const Tensor& key, const Tensor& value,
                             Tensor state, const std::optional<Tensor>& normalizer,
                             int64_t feature_map, const OptionalTensor& decay, double scale,
                             bool normalize, double eps) {
  const OptionalTensor none, initial_state = state;
  const Arguments a{query,     key, value, feature_map, true,          decay,     scale,
                    normalize, eps, none,  none,        initial_state, normalizer};
  LinearParams p;
  fill("_linear_attention_step", a, p);
  check(p.Lk == 1, "key: expected one token, got ", describe(key));
  const ScalarType type = accumulator_of(query.scalar_type());
  check(state.scalar_type() == type && state.is_contiguous(),
        "state: expected what the forward operator gave, got ", describe(state));
  if (normalize)
    check(normalizer->scalar_type() == type && normalizer->is_contiguous(),
          "normalizer: expected what the forward operator gave, got ", describe(*normalizer));
  Tensor out = empty_heads({p.B, p.H, p.Lq, p.Dv}, query);
  p.out = view_of(out);
  run_items(kernels().linear_step[compute_index(query)], p);
  return out;
}

// The gradients asked for. Those of heads that others share are made one for each that reads them,
// in the compute type, and added up at the end.
class Backward {
 public:
  Backward(const Arguments& a, const Tensor& grad_out, const OptionalTensor& grad_state,
           const OptionalTensor& grad_normalizer, const Tensor& out, const Tensor& denominator,
           const std::vector<bool>& needs)
      : a_(a), index_(compute_index(a.query)), type_(accumulator_of(a.query.scalar_type())) {
    check(needs.size() == 6, "needs: expected 6 booleans, got ", needs.size());
    check_no_derivative("_linear_attention_backward",
                        {&grad_out, pointer(grad_state), pointer(grad_normalizer)});
    fill("_linear_attention_backward", a, p_);
    fill_results(grad_out, grad_state, grad_normalizer, out, denominator);
    p_.dquery = gradient(needs[0], a.query, p_.H);
    p_.dkey = gradient(needs[1], a.key, p_.Hs);
    p_.dvalue = gradient(needs[2], a.value, p_.Hs);
    decay_gradient(needs[3]);
    state_gradient(needs[4], a.initial_state, p_.dinitial);
    state_gradient(needs[5], a.initial_normalizer, p_.dinitial_z);
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> run() {
    const Tensor states = run_states(p_, index_);
    if (exact_out_) recompute_out();
    Tensor grads =
        empty(p_.needs_scan() ? std::vector<int64_t>{p_.sequences, p_.Hs, p_.parts, p_.state_size()}
                              : std::vector<int64_t>{0},
              type_);
    p_.part_grads = grads.data_ptr();
    run_items(kernels().linear_grad_states[index_], p_);
    run_items(kernels().linear_grad_scan[index_], p_);
    run_items(kernels().linear_backward[index_], p_);
    for (const HeadSumParams& sum : sums_) run_items(kernels().head_sum[index_], sum);
    return {gradients_[0], gradients_[1], gradients_[2],
            gradients_[3], gradients_[4], gradients_[5]};
  }

 private:
  const Arguments& a_;
  const int index_;
  const ScalarType type_;
  LinearGradParams p_;
  std::vector<Tensor> gradients_, workspace_;
  std::vector<HeadSumParams> sums_;
  bool exact_out_ = false;

  // Sums of grad_out * out over many tokens cancel in ddecay: a rounded out would leave noise.
  void recompute_out() {
    LinearParams p = p_;
    workspace_.push_back(empty({p.B, p.H, p.Lq, p.Dv}, type_));
    p.out = p_.out = view_of(workspace_.back());
    workspace_.push_back(empty({p.B, p.H, p.Lq}, type_));
    p.denominator = view_of(workspace_.back());
    run_items(kernels().linear_forward[index_], p);
  }

  void fill_results(const Tensor& grad_out, const OptionalTensor& grad_state,
                    const OptionalTensor& grad_normalizer, const Tensor& out,
                    const Tensor& denominator) {
    const Sizes full{p_.B, p_.H, p_.Lq, p_.Dv};
    const auto matches = [&](const Tensor& t) {
      return t.is_cpu() && t.dim() == 4 && sizes_of(t) == full &&
             t.scalar_type() == a_.query.scalar_type();
    };
    check(matches(out), "out: expected what the forward operator gave, got ", describe(out));
    check(matches(grad_out), "grad_out: expected shape and dtype of out, got ", describe(grad_out));
    p_.out = view_of(out);
    p_.grad_out = view_of(grad_out);
    if (p_.normalize) {
      check(denominator.is_cpu() && denominator.dim() == 3 && denominator.scalar_type() == type_ &&
                sizes_of(denominator) == Sizes{p_.B, p_.H, p_.Lq, 1},
            "denominator: expected what the forward operator gave, got ", describe(denominator));
      p_.denominator = view_of(denominator);
    }
    if (grad_state) {
      check_state("grad_state", *grad_state, {p_.sequences, p_.Hs, p_.D, p_.Dv});
      p_.grad_state = view_of(*grad_state);
    }
    if (grad_normalizer && p_.normalize) {
      check_state("grad_normalizer", *grad_normalizer, {p_.sequences, p_.Hs, p_.D});
      p_.grad_z = row_view(*grad_normalizer);
    }
  }

  View gradient(bool needed, const Tensor& like, int64_t heads) {
    const Sizes size = sizes_of(like);
    gradients_.push_back(needed ? empty_heads(size, like) : empty({0}, like.scalar_type()));
    if (!needed) return View();
    if (heads == size[1]) return view_of(gradients_.back());
    workspace_.push_back(empty({size[0], heads, size[2], size[3]}, type_));
    HeadSumParams sum;
    sum.B = size[0], sum.heads = size[1], sum.group = heads / size[1], sum.L = size[2];
    sum.D = size[3];
    sum.from = view_of(workspace_.back()), sum.to = view_of(gradients_.back());
    sums_.push_back(sum);
    return sum.from;
  }
  void decay_gradient(bool needed) {
    needed = needed && a_.decay.has_value();
    const Tensor& like = a_.decay ? *a_.decay : a_.query;
    const auto sizes = like.sizes();
    gradients_.push_back(
        empty(needed ? std::vector<int64_t>(sizes.begin(), sizes.end()) : std::vector<int64_t>{0},
              like.scalar_type()));
    if (!needed) return;
    workspace_.push_back(empty({p_.B, p_.Hs, p_.Lk, p_.channel_decay() ? p_.width : 1}, type_));
    p_.decay_terms = workspace_.back().data_ptr();
    if (!p_.channel_decay()) {
      workspace_.push_back(empty({p_.B, p_.Hs, p_.checkpoints(), p_.state_size()}, type_));
      p_.checkpoint_states = workspace_.back().data_ptr();
    }
    if (p_.normalize && a_.query.scalar_type() != type_) exact_out_ = true;
    p_.ddecay = view_of(gradients_.back());
    if (p_.decay_kind != DecayKind::kHead) return;
    workspace_.push_back(empty({p_.B, p_.Hs, p_.Lk}, type_));
    HeadSumParams sum;
    sum.B = p_.B, sum.heads = p_.Hs, sum.L = p_.Lk, sum.over_tokens = true;
    sum.from = view_of(workspace_.back()), sum.to = p_.ddecay;
    sum.to.stride[1] = sum.to.stride[0], sum.to.stride[0] = 0;
    sums_.push_back(sum);
    p_.ddecay = sum.from;
  }
  void state_gradient(bool needed, const OptionalTensor& like, View& view) {
    needed = needed && like.has_value();
    std::vector<int64_t> sizes{0};
    if (needed) sizes.assign(like->sizes().begin(), like->sizes().end());
    gradients_.push_back(empty(sizes, like ? like->scalar_type() : type_));
    if (!needed) return;
    view = sizes.size() == 4 ? view_of(gradients_.back()) : row_view(gradients_.back());
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_attention_backward(
    const Tensor& grad_out, const OptionalTensor& grad_state, const OptionalTensor& grad_normalizer,
    ATTN_LINEAR_PARAMETERS, const Tensor& out, const Tensor& denominator,
    const std::vector<bool>& needs) {
  const Arguments a{ATTN_LINEAR_ARGUMENTS};
  return Backward(a, grad_out, grad_state, grad_normalizer, out, denominator, needs).run();
}

#define ATTN_LINEAR_SCHEMA                                                                      \
  "Tensor query, Tensor key, Tensor value, int feature_map, bool causal, Tensor? decay, float " \
  "scale, bool normalize, float eps, Tensor? key_lengths, Tensor? cu_seqlens, Tensor? "         \
  "initial_state, Tensor? initial_normalizer"
#define ATTN_LINEAR_RESULTS " -> (Tensor out, Tensor denominator, Tensor state, Tensor normalizer)"

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(attention_ext, m) {
  m.def("linear_attention(" ATTN_LINEAR_SCHEMA ")" ATTN_LINEAR_RESULTS);
  m.def("_linear_attention_forward(" ATTN_LINEAR_SCHEMA ")" ATTN_LINEAR_RESULTS);
  m.def(
      "_linear_attention_step(Tensor query, Tensor key, Tensor value, Tensor(a!) state, "
      "Tensor(b!)? "
      "normalizer, int feature_map, Tensor? decay, float scale, bool normalize, float eps) -> "
      "Tensor");
  m.def(
      "_linear_attention_backward(Tensor grad_out, Tensor? grad_state, Tensor? "
      "grad_normalizer, " ATTN_LINEAR_SCHEMA
      ", Tensor out, Tensor denominator, bool[] needs) -> (Tensor dquery, Tensor dkey, Tensor "
      "dvalue, Tensor ddecay, Tensor dinitial_state, Tensor dinitial_normalizer)");
}

STABLE_TORCH_LIBRARY_IMPL(attention_ext, CPU, m) {
  m.impl("linear_attention", TORCH_BOX(&linear_attention));
  m.impl("_linear_attention_forward", TORCH_BOX(&linear_attention_forward));
  m.impl("_linear_attention_step", TORCH_BOX(&linear_attention_step));
  m.impl("_linear_attention_backward", TORCH_BOX(&linear_attention_backward));
}

}  // namespace attn
