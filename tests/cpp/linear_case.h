// One call of linear attention or the delta rule for the kernels: its arrays, its parameters, and a
// run in guarded memory.
#pragma once

#include <string>
#include <vector>

#include "attention_case.h"
#include "core/linear_params.h"

struct LinearShape {
  int64_t B = 1, Hq = 1, Hk = 1, Hv = 1, Lq = 1, Lk = 1, D = 4, Dv = 4;

  int64_t Hs() const { return std::max(Hk, Hv); }
  int64_t H() const { return std::max(Hq, Hs()); }
};

struct LinearCase {
  std::string name;
  LinearShape shape;
  attn::Dtype dtype = attn::Dtype::kFloat32;
  Layout layout = Layout::kPlain;
  attn::FeatureMap map = attn::FeatureMap::kIdentity;
  attn::DecayKind decay = attn::DecayKind::kNone;
  double strength = 1, scale = 0.7, eps = 0.3;
  bool causal = true, normalize = false, delta = false, initial = true;
  std::vector<int64_t> lengths, borders;
  int64_t part_tokens = 0;    // 0 = one part
  int64_t block_columns = 0;  // 0 = all
  bool dq = true, dk = true, dv = true, ddecay = true;

  int64_t sequences() const {
    return borders.empty() ? shape.B : static_cast<int64_t>(borders.size()) - 1;
  }
};

class LinearCall {
 public:
  explicit LinearCall(const LinearCase& c) : case_(c) {
    make_inputs();
    make_results();
    make_params();
  }

  // Forward, then backward from what it gave; work items in order or the other way round. Scratch
  // and workspace start out as NaN, or as zeros.
  void run(bool reversed, bool zeroed);
  // One token in place on the initial state.
  void step() {
    const attn::LinearKernels& kernels =
        attn::kernels().linear[case_.dtype == attn::Dtype::kFloat64];
    run_items<attn::LinearParams>(kernels.step, p_, false, false);
  }
  void check_guards() {
    for (GuardedArray* array : arrays()) array->check_guards();
  }
  std::vector<std::vector<char>> results() {
    std::vector<std::vector<char>> all;
    for (GuardedArray* array :
         {&out, &state, &state_z, &dquery, &dkey, &dvalue, &dbeta, &ddecay, &dinitial, &dinitial_z})
      all.push_back(array->bytes());
    return all;
  }
  const LinearCase& options() const { return case_; }

  GuardedArray query, key, value, decay, beta, initial, initial_z, grad_out, grad_state, grad_z;
  GuardedArray out, denominator, state, state_z;
  // Of the inputs one for each state head, or for each head of queries.
  GuardedArray dquery, dkey, dvalue, dbeta, ddecay, dinitial, dinitial_z;

 private:
  LinearCase case_;
  attn::LinearGradParams p_;
  std::vector<Scratch> workspace_;

  std::vector<GuardedArray*> arrays() {
    return {&query,    &key,    &value, &decay,  &beta,     &initial,    &initial_z,
            &grad_out, &grad_z, &out,   &state,  &state_z,  &dquery,     &denominator,
            &dkey,     &dvalue, &dbeta, &ddecay, &dinitial, &dinitial_z, &grad_state};
  }
  void make_inputs();
  void make_results();
  void make_params();
  void* take(int64_t elements, bool zeroed) {
    workspace_.emplace_back(elements * attn::size_of(accumulator_of(case_.dtype)));
    workspace_.back().fill(zeroed);
    return workspace_.back().memory.get();
  }
};

inline void fill_uniform(GuardedArray& array, std::mt19937& generator, double low, double high) {
  std::uniform_real_distribution<double> uniform(low, high);
  array.for_each([&](int64_t b, int64_t h, int64_t l, int64_t d) {
    array.set(b, h, l, d, uniform(generator));
  });
}

inline void LinearCall::make_inputs() {
  const LinearCase& c = case_;
  const LinearShape& s = c.shape;
  const attn::Dtype compute = accumulator_of(c.dtype);
  const int64_t n = c.sequences();
  query = GuardedArray({s.B, s.Hq, s.Lq, s.D}, c.dtype, c.layout);
  key = GuardedArray({s.B, s.Hk, s.Lk, s.D}, c.dtype, c.layout);
  value = GuardedArray({s.B, s.Hv, s.Lk, s.Dv}, c.dtype, c.layout);
  grad_out = GuardedArray({s.B, s.H(), s.Lq, s.Dv}, c.dtype, c.layout);
  grad_state = GuardedArray({n, s.Hs(), s.D, s.Dv}, compute);
  if (c.normalize) grad_z = GuardedArray({n, s.Hs(), 1, s.D}, compute);
  if (c.initial) initial = GuardedArray({n, s.Hs(), s.D, s.Dv}, compute);
  if (c.initial && c.normalize) initial_z = GuardedArray({n, s.Hs(), 1, s.D}, compute);
  if (c.delta) beta = GuardedArray({s.B, s.Hs(), s.Lk, 1}, c.dtype);
  if (c.decay == attn::DecayKind::kHead) decay = GuardedArray({1, s.Hs(), 1, 1}, c.dtype);
  if (c.decay == attn::DecayKind::kToken) decay = GuardedArray({s.B, s.Hs(), s.Lk, 1}, c.dtype);
  if (c.decay == attn::DecayKind::kChannel)
    decay = GuardedArray({s.B, s.Hs(), s.Lk, s.D}, c.dtype, c.layout);
  std::mt19937 generator(5);
  for (GuardedArray* t : {&query, &key, &value, &grad_out, &grad_state, &grad_z, &initial})
    fill_normal(*t, generator);
  // Denominators, and products of keys of the delta rule, that are far from 0 and from 1.
  const double size = 1 / std::sqrt(static_cast<double>(s.D));
  if (c.normalize && c.map == attn::FeatureMap::kIdentity)
    for (GuardedArray* t : {&query, &key}) fill_uniform(*t, generator, 0.1, 1);
  if (c.delta) fill_uniform(key, generator, -size, size);
  fill_uniform(initial_z, generator, 0.1, 1);
  fill_uniform(beta, generator, 0, 1.5);
  fill_uniform(decay, generator, -c.strength, 0);
}

inline void LinearCall::make_results() {
  const LinearCase& c = case_;
  const LinearShape& s = c.shape;
  const attn::Dtype compute = accumulator_of(c.dtype);
  const int64_t n = c.sequences();
  out = GuardedArray({s.B, s.H(), s.Lq, s.Dv}, c.dtype, c.layout);
  state = GuardedArray({n, s.Hs(), s.D, s.Dv}, compute);
  if (c.normalize) denominator = GuardedArray({s.B, s.H(), s.Lq, 1}, compute);
  if (c.normalize) state_z = GuardedArray({n, s.Hs(), 1, s.D}, compute);
  if (c.dq) dquery = GuardedArray({s.B, s.H(), s.Lq, s.D}, c.dtype, c.layout);
  if (c.dk) dkey = GuardedArray({s.B, s.Hs(), s.Lk, s.D}, c.dtype, c.layout);
  if (c.dv) dvalue = GuardedArray({s.B, s.Hs(), s.Lk, s.Dv}, c.dtype, c.layout);
  if (c.delta) dbeta = GuardedArray({s.B, s.Hs(), s.Lk, 1}, c.dtype);
  const int64_t channels = c.decay == attn::DecayKind::kChannel ? s.D : 1;
  if (c.decay != attn::DecayKind::kNone && c.ddecay)
    ddecay = GuardedArray({s.B, s.Hs(), s.Lk, channels}, compute);
  if (c.initial) dinitial = GuardedArray({n, s.Hs(), s.D, s.Dv}, compute);
  if (c.initial && c.normalize) dinitial_z = GuardedArray({n, s.Hs(), 1, s.D}, compute);
}

inline void LinearCall::make_params() {
  const LinearCase& c = case_;
  const LinearShape& s = c.shape;
  p_.B = s.B, p_.H = s.H(), p_.Hq = s.Hq, p_.Hk = s.Hk, p_.Hv = s.Hv, p_.Hs = s.Hs();
  p_.Lq = s.Lq, p_.Lk = s.Lk, p_.D = s.D, p_.Dv = s.Dv;
  p_.query = query.view(), p_.key = key.view(), p_.value = value.view();
  p_.decay = decay.view(), p_.beta = beta.view();
  p_.initial = initial.view(), p_.initial_z = initial_z.view();
  p_.out = out.view(), p_.denominator = denominator.view();
  p_.state = state.view(), p_.state_z = state_z.view();
  p_.grad_out = grad_out.view(), p_.grad_state = grad_state.view(), p_.grad_z = grad_z.view();
  p_.dquery = dquery.view(), p_.dkey = dkey.view(), p_.dvalue = dvalue.view();
  p_.dbeta = dbeta.view(), p_.ddecay = ddecay.view();
  p_.dinitial = dinitial.view(), p_.dinitial_z = dinitial_z.view();
  p_.key_lengths = case_.lengths.empty() ? nullptr : case_.lengths.data();
  p_.cu_seqlens = case_.borders.empty() ? nullptr : case_.borders.data();
  p_.sequences = c.sequences();
  p_.map = c.map, p_.decay_kind = c.decay;
  p_.causal = c.causal, p_.normalize = c.normalize;
  p_.scale = c.scale, p_.eps = c.eps;
  p_.columns = (s.Dv + 15) / 16 * 16, p_.width = (s.D + 15) / 16 * 16;
  p_.block_columns = c.block_columns ? c.block_columns : p_.columns;
  const int64_t L = std::max(s.Lq, s.Lk);
  p_.part_tokens = c.part_tokens ? c.part_tokens : (L + 47) / 48 * 48;
  p_.parts = c.part_tokens ? std::max<int64_t>((L + c.part_tokens - 1) / c.part_tokens, 1) : 1;
}

inline void LinearCall::run(bool reversed, bool zeroed) {
  const attn::LinearKernels& kernels = attn::kernels().linear[case_.dtype == attn::Dtype::kFloat64];
  const auto items = [&](const auto& kernel) { run_items(kernel, p_, reversed, zeroed); };
  const auto forward_items = [&](const attn::Kernel<attn::LinearParams>& kernel) {
    run_items<attn::LinearParams>(kernel, p_, reversed, zeroed);
  };
  workspace_.clear();
  const int64_t all_parts = p_.sequences * p_.Hs * p_.parts * p_.state_size();
  const int64_t tokens = p_.B * p_.Hs * p_.Lk, parts = p_.parts, part_tokens = p_.part_tokens;
  p_.part_states = take(all_parts, zeroed);
  if (case_.delta) p_.parts = 1, p_.part_tokens = p_.Lk;  // parts are the backward's only
  forward_items(kernels.states);
  forward_items(kernels.scan);
  forward_items(kernels.forward);
  p_.parts = parts, p_.part_tokens = part_tokens;

  p_.part_grads = take(all_parts, zeroed);
  p_.decay_terms = take(tokens * p_.width, zeroed);
  p_.errors = take(tokens * p_.columns, zeroed);
  const int64_t checkpoints = p_.B * p_.Hs * p_.checkpoints() * p_.state_size();
  p_.checkpoint_states = ddecay.exists() || case_.delta ? take(checkpoints, zeroed) : nullptr;
  if (case_.delta) {
    items(kernels.delta_states);
    items(kernels.delta_grad_states);
    items(kernels.delta_backward);
  } else {
    forward_items(kernels.states);
    forward_items(kernels.scan);
    items(kernels.grad_states);
    items(kernels.grad_scan);
    items(kernels.backward);
  }
}
