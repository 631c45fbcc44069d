#include "bindings/linear_calls.h"

#include <algorithm>

#include "bindings/threads.h"
#include "cpu/dispatch.h"

namespace attn {

namespace {

// Which of the two instances of a kernel: the one that computes in float or in double.
int compute_index(const Tensor& query) { return query.scalar_type() == ScalarType::Double; }

// The delta rule's heads are divided further where there are fewer than threads: forward by columns
// of values, backward also, once the states are known, by tokens. Neither shows in the results.
void share_out_delta(LinearParams& p, bool backward) {
  constexpr int64_t kLeastColumns = 16, kLeastTokens = 192;
  const int64_t heads = std::max<int64_t>(p.sequences * p.Hs, 1);
  const int64_t shares = (torch::stable::get_num_threads() + heads - 1) / heads;
  if (!p.beta || shares < 2) return;
  p.block_columns = round_up((p.columns + shares - 1) / shares, kLeastColumns);
  if (!backward) return;
  p.part_tokens = round_up(std::max((p.Lk + 2 * shares - 1) / (2 * shares), kLeastTokens),
                           LinearGradParams::kCheckpoint);
  p.parts = std::max<int64_t>((p.Lk + p.part_tokens - 1) / p.part_tokens, 1);
}

// The states at the borders of parts, and their memory.
Tensor run_states(LinearParams& p, int index) {
  const ScalarType type = index ? ScalarType::Double : ScalarType::Float;
  if (!p.needs_scan()) return empty({0}, type);
  Tensor states = empty({p.sequences, p.Hs, p.parts, p.state_size()}, type);
  p.part_states = states.data_ptr();
  run_items(kernels().linear[index].states, p);
  run_items(kernels().linear[index].scan, p);
  return states;
}

// The gradients asked for. Those of heads that others share are made one for each that reads them,
// in the compute type, and added up at the end.
class Backward {
 public:
  Backward(const char* op, const LinearArguments& a, const LinearGradArguments& g,
           const std::array<bool, kLinearGradients>& needs)
      : a_(a), index_(compute_index(a.query)), type_(accumulator_of(a.query.scalar_type())) {
    check_no_derivative(op, {&g.grad_out, pointer(g.grad_state), pointer(g.grad_normalizer)});
    fill_linear(op, a, p_);
    fill_results(g.grad_out, g.grad_state, g.grad_normalizer, g.out, g.denominator);
    p_.dquery = gradient(needs[kQuery], a.query, p_.H);
    p_.dkey = gradient(needs[kKey], a.key, p_.Hs);
    p_.dvalue = gradient(needs[kValue], a.value, p_.Hs);
    p_.dbeta = optional_gradient(needs[kBeta], a.beta);
    decay_gradient(needs[kDecay]);
    p_.dinitial = optional_gradient(needs[kState], a.initial_state);
    p_.dinitial_z = optional_gradient(needs[kNormalizer], a.initial_normalizer);
    if (p_.dinitial_z) p_.dinitial_z = row_view(gradients_.back());
  }

  std::vector<Tensor> run() {
    if (p_.beta)
      run_delta();
    else
      run_linear();
    for (const HeadSumParams& sum : sums_) run_items(kernels().linear[index_].head_sum, sum);
    return gradients_;
  }

 private:
  const LinearArguments& a_;
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
    run_items(kernels().linear[index_].forward, p);
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
      check_state("grad_state", *grad_state, a_.query, {p_.sequences, p_.Hs, p_.D, p_.Dv});
      p_.grad_state = view_of(*grad_state);
    }
    if (grad_normalizer && p_.normalize) {
      check_state("grad_normalizer", *grad_normalizer, a_.query, {p_.sequences, p_.Hs, p_.D});
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
    keep_checkpoints();
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
  View optional_gradient(bool needed, const OptionalTensor& like) {
    needed = needed && like.has_value();
    std::vector<int64_t> sizes{0};
    if (needed) sizes.assign(like->sizes().begin(), like->sizes().end());
    gradients_.push_back(empty(sizes, like ? like->scalar_type() : type_));
    return needed ? view_of(gradients_.back()) : View();
  }

  void keep_checkpoints() {
    if (p_.checkpoint_states) return;
    workspace_.push_back(empty({p_.B, p_.Hs, p_.checkpoints(), p_.state_size()}, type_));
    p_.checkpoint_states = workspace_.back().data_ptr();
  }
  void keep_part_grads(bool needed) {
    workspace_.push_back(
        empty(needed ? std::vector<int64_t>{p_.sequences, p_.Hs, p_.parts, p_.state_size()}
                     : std::vector<int64_t>{0},
              type_));
    p_.part_grads = workspace_.back().data_ptr();
  }

  void run_delta() {
    share_out_delta(p_, true);
    workspace_.push_back(empty({p_.B, p_.Hs, p_.Lk, p_.columns}, type_));
    p_.errors = workspace_.back().data_ptr();
    keep_checkpoints();
    keep_part_grads(p_.parts > 1);
    run_items(kernels().linear[index_].delta_states, p_);
    run_items(kernels().linear[index_].delta_grad_states, p_);
    run_items(kernels().linear[index_].delta_backward, p_);
  }
  void run_linear() {
    const Tensor states = run_states(p_, index_);
    if (exact_out_) recompute_out();
    keep_part_grads(p_.needs_scan());
    run_items(kernels().linear[index_].grad_states, p_);
    run_items(kernels().linear[index_].grad_scan, p_);
    run_items(kernels().linear[index_].backward, p_);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_forward(const char* op,
                                                          const LinearArguments& a) {
  LinearParams p;
  fill_linear(op, a, p);
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
  share_out_delta(p, false);
  run_items(kernels().linear[index].forward, p);
  return {out, denominator, state, normalizer};
}

Tensor linear_step(const char* op, const LinearArguments& a) {
  LinearParams p;
  fill_linear(op, a, p);
  check(p.Lk == 1, "key: expected one token, got ", describe(a.key));
  const ScalarType type = accumulator_of(a.query.scalar_type());
  for (const Tensor* t : {pointer(a.initial_state), pointer(a.initial_normalizer)})
    check(!t || (t->scalar_type() == type && t->is_contiguous()),
          "state: expected what the forward operator gave, got ", describe(t ? *t : a.query));
  Tensor out = empty_heads({p.B, p.H, p.Lq, p.Dv}, a.query);
  p.out = view_of(out);
  run_items(kernels().linear[compute_index(a.query)].step, p);
  return out;
}

std::vector<Tensor> linear_backward(const char* op, const LinearArguments& a,
                                    const LinearGradArguments& g,
                                    const std::array<bool, kLinearGradients>& needs) {
  return Backward(op, a, g, needs).run();
}

}  // namespace attn
