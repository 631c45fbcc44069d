#include "bindings/linear_cuda.h"

#include <algorithm>

#include "bindings/device_tensor_cuda.h"
#include "cuda/delta.h"
#include "cuda/linear.h"

namespace attn::cuda {

namespace {

// A call's parameters, and the memory that it needs for itself: alive until its kernels are
// launched, as the allocator hands memory out in the order of the stream.
class Call {
 public:
  Call(const char* op, const LinearArguments& a)
      : a_(a), type_(accumulator_of(a.query.scalar_type())) {
    fill_linear(op, a, p, Values::kUnread);
    p.columns = p.block_columns = p.Dv, p.width = p.D;
    p.edge = is_double() ? 32 : 64;
    plan_parts();
  }

  LinearCall p;

  bool is_double() const { return type_ == ScalarType::Double; }
  ScalarType type() const { return type_; }
  Tensor make(const std::vector<int64_t>& sizes) const { return empty_on(a_.query, sizes, type_); }
  void* workspace(const std::vector<int64_t>& sizes) {
    tensors_.push_back(make(sizes));
    return tensors_.back().data_ptr();
  }
  // Of the delta rule, whose pieces are its own affair.
  void* workspace_bytes(size_t bytes) {
    tensors_.push_back(empty_on(a_.query, {static_cast<int64_t>(bytes)}, ScalarType::Byte));
    return tensors_.back().data_ptr();
  }
  View workspace_view(const std::vector<int64_t>& sizes) {
    tensors_.push_back(make(sizes));
    return view_of(tensors_.back());
  }

  // Where query and key go through a feature map, kernels read what it makes of them.
  void map_inputs() {
    if (p.map == FeatureMap::kIdentity) return;
    p.map_query = p.query, p.map_key = p.key;
    p.query = mapped(a_.query), p.key = mapped(a_.key);
  }
  void keep_states() {
    const int64_t count = p.causal ? p.chunks_of(p.Lk) : p.sequences;
    p.chunk_states = workspace({count, p.Hs, p.chunk_state_size()});
    if (p.needs_scan()) p.part_states = workspace({p.sequences, p.Hs, p.parts, p.state_size()});
  }
  void keep_grad_states() {
    const int64_t count = p.causal ? p.chunks_of(p.Lk) : p.sequences;
    p.chunk_grads = workspace({count, p.Hs, p.chunk_state_size()});
    if (p.needs_scan()) p.part_grads = workspace({p.sequences, p.Hs, p.parts, p.state_size()});
  }

 private:
  const LinearArguments& a_;
  const ScalarType type_;
  std::vector<Tensor> tensors_;

  // A function of the shapes alone: enough blocks for a large device, of at least 512 tokens.
  void plan_parts() {
    constexpr int64_t kBlocks = 256, kLeastTokens = 512;
    const int64_t heads = std::max<int64_t>(p.sequences * p.Hs, 1), L = std::max(p.Lq, p.Lk);
    const int64_t blocks = heads * p.blocks_of(p.D) * std::max<int64_t>(p.blocks_of(p.Dv), 1);
    const int64_t wanted =
        a_.beta ? 1
                : std::clamp<int64_t>(kBlocks / blocks, 1, std::max<int64_t>(L / kLeastTokens, 1));
    p.part_tokens = std::max(round_up((L + wanted - 1) / wanted, p.edge), p.edge);
    p.parts = std::max<int64_t>((L + p.part_tokens - 1) / p.part_tokens, 1);
  }
  View mapped(const Tensor& t) {
    const Sizes s = sizes_of(t);
    tensors_.push_back(empty_on(t, {s[0], s[1], s[2], s[3]}, t.scalar_type()));
    return view_of(tensors_.back());
  }
};

// The gradients asked for. Those of heads that others share, or that go through a feature map, are
// made in the compute type, and summed and mapped at the end.
class Backward {
 public:
  Backward(const char* op, const LinearArguments& a, const LinearGradArguments& g,
           const std::array<bool, kLinearGradients>& needs)
      : a_(a), call_(op, a), p_(call_.p) {
    check_no_derivative(op, {&g.grad_out, pointer(g.grad_state), pointer(g.grad_normalizer)});
    fill_results(g);
    if (!a.beta) {
      call_.map_inputs();
      call_.keep_states();
      call_.keep_grad_states();
      keep_rows();
    }
    p_.dquery = gradient(needs[kQuery], a.query, p_.H, p_.query);
    p_.dkey = gradient(needs[kKey], a.key, p_.Hs, p_.key);
    p_.dvalue = gradient(needs[kValue], a.value, p_.Hs, View());
    p_.dbeta = optional_gradient(needs[kBeta], a.beta);
    decay_gradient(needs[kDecay]);
    p_.dinitial = optional_gradient(needs[kState], a.initial_state);
    p_.dinitial_z = optional_gradient(needs[kNormalizer], a.initial_normalizer);
    if (p_.dinitial_z) p_.dinitial_z = row_view(gradients_.back());
  }

  std::vector<Tensor> run() {
    const DeviceScope device(a_.query);
    if (call_.is_double())
      launch<double>(device.stream());
    else
      launch<float>(device.stream());
    return gradients_;
  }

 private:
  const LinearArguments& a_;
  Call call_;
  LinearCall& p_;
  std::vector<Tensor> gradients_;
  std::vector<LinearRowsCall> row_sums_, token_sums_;

  template <class T>
  void launch(Stream stream) {
    if (a_.beta)
      delta_backward(p_, call_.workspace_bytes(delta_backward_workspace_bytes(p_)), stream);
    else
      cuda::linear_backward<T>(p_, stream);
    for (const LinearRowsCall& sum : row_sums_) linear_sum_rows<T>(sum, stream);
    for (const LinearRowsCall& sum : token_sums_) linear_sum_tokens<T>(sum, stream);
  }

  void fill_results(const LinearGradArguments& g) {
    const Sizes full{p_.B, p_.H, p_.Lq, p_.Dv};
    const auto matches = [&](const Tensor& t) {
      return on_same_device(t, a_.query) && t.dim() == 4 && sizes_of(t) == full &&
             t.scalar_type() == a_.query.scalar_type();
    };
    check(matches(g.out), "out: expected what the forward operator gave, got ", describe(g.out));
    check(matches(g.grad_out), "grad_out: expected shape and dtype of out, got ",
          describe(g.grad_out));
    p_.out = view_of(g.out);
    p_.grad_out = view_of(g.grad_out);
    if (p_.normalize) {
      const Tensor& t = g.denominator;
      check(on_same_device(t, a_.query) && t.dim() == 3 && t.scalar_type() == call_.type() &&
                sizes_of(t) == Sizes{p_.B, p_.H, p_.Lq, 1},
            "denominator: expected what the forward operator gave, got ", describe(t));
      p_.denominator = view_of(t);
    }
    if (g.grad_state) {
      check_state("grad_state", *g.grad_state, a_.query, {p_.sequences, p_.Hs, p_.D, p_.Dv});
      p_.grad_state = view_of(*g.grad_state);
    }
    if (g.grad_normalizer && p_.normalize) {
      check_state("grad_normalizer", *g.grad_normalizer, a_.query, {p_.sequences, p_.Hs, p_.D});
      p_.grad_z = row_view(*g.grad_normalizer);
    }
  }

  void keep_rows() {
    p_.row_factor = call_.workspace({p_.B, p_.H, p_.Lq});
    p_.row_delta = call_.workspace({p_.B, p_.H, p_.Lq});
  }

  // phi: what the gradient has to go through, where there is a map.
  View gradient(bool needed, const Tensor& like, int64_t heads, const View& phi) {
    const Sizes size = sizes_of(like);
    gradients_.push_back(needed ? empty_heads(size, like)
                                : empty_on(like, {0}, like.scalar_type()));
    if (!needed) return View();
    const bool mapped = phi && p_.map != FeatureMap::kIdentity;
    if (heads == size[1] && !mapped) return view_of(gradients_.back());
    LinearRowsCall sum;
    sum.B = p_.B, sum.heads = size[1], sum.group = heads / std::max<int64_t>(size[1], 1);
    sum.L = size[2], sum.D = size[3];
    sum.from = call_.workspace_view({size[0], heads, size[2], size[3]});
    if (mapped) sum.map = p_.map, sum.phi = phi;
    sum.to = view_of(gradients_.back());
    row_sums_.push_back(sum);
    return sum.from;
  }
  View optional_gradient(bool needed, const OptionalTensor& like) {
    needed = needed && like.has_value();
    std::vector<int64_t> sizes{0};
    if (needed) sizes.assign(like->sizes().begin(), like->sizes().end());
    gradients_.push_back(empty_on(a_.query, sizes, like ? like->scalar_type() : call_.type()));
    return needed ? view_of(gradients_.back()) : View();
  }

  void decay_gradient(bool needed) {
    needed = needed && a_.decay.has_value();
    const Tensor& like = a_.decay ? *a_.decay : a_.query;
    const auto sizes = like.sizes();
    gradients_.push_back(empty_on(
        a_.query,
        needed ? std::vector<int64_t>(sizes.begin(), sizes.end()) : std::vector<int64_t>{0},
        like.scalar_type()));
    if (!needed) return;
    p_.ddecay = view_of(gradients_.back());
    if (a_.beta) return;
    const int64_t terms = p_.channel_decay() ? p_.D : p_.blocks_of(p_.D);
    p_.query_terms = call_.workspace({p_.B, p_.H, p_.Lk, terms});
    p_.key_terms = call_.workspace({p_.B, p_.Hs, p_.Lk, terms});
    p_.decay_dots = call_.workspace(
        {p_.chunks_of(p_.Lk), p_.Hs, std::max<int64_t>(p_.blocks_of(p_.Dv), 1), p_.D});
    // Sums of grad_out * out over many tokens cancel: a rounded out would leave noise.
    if (p_.normalize && a_.query.scalar_type() != call_.type())
      p_.exact_out = call_.workspace_view({p_.B, p_.H, p_.Lq, p_.Dv});
    if (p_.decay_kind != DecayKind::kHead) return;
    LinearRowsCall sum;
    sum.B = p_.B, sum.heads = p_.Hs, sum.L = p_.Lk;
    sum.from = call_.workspace_view({p_.B, p_.Hs, p_.Lk, 1});
    sum.to = p_.ddecay;
    sum.to.stride[1] = sum.to.stride[0], sum.to.stride[0] = 0;
    token_sums_.push_back(sum);
    p_.ddecay = sum.from;
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_forward(const char* op,
                                                          const LinearArguments& a) {
  Call call(op, a);
  const DeviceScope device(a.query);
  LinearCall& p = call.p;
  Tensor out = empty_heads({p.B, p.H, p.Lq, p.Dv}, a.query);
  Tensor denominator =
      call.make(p.normalize ? std::vector<int64_t>{p.B, p.H, p.Lq} : std::vector<int64_t>{0});
  Tensor state = call.make({p.sequences, p.Hs, p.D, p.Dv});
  Tensor normalizer = call.make(p.normalize ? std::vector<int64_t>{p.sequences, p.Hs, p.D}
                                            : std::vector<int64_t>{0});
  p.out = view_of(out);
  p.state = view_of(state);
  if (p.normalize) p.denominator = view_of(denominator), p.state_z = row_view(normalizer);
  if (a.beta) {
    delta_forward(p, call.workspace_bytes(delta_workspace_bytes(p)), device.stream());
    return {out, denominator, state, normalizer};
  }
  call.map_inputs();
  call.keep_states();
  (call.is_double() ? linear_forward<double> : linear_forward<float>)(p, device.stream());
  return {out, denominator, state, normalizer};
}

Tensor linear_step(const char* op, const LinearArguments& a) {
  Call call(op, a);
  LinearCall& p = call.p;
  check(p.Lk == 1, "key: expected one token, got ", describe(a.key));
  for (const Tensor* t : {pointer(a.initial_state), pointer(a.initial_normalizer)})
    check(!t || (t->scalar_type() == call.type() && t->is_contiguous()),
          "state: expected what the forward operator gave, got ", describe(t ? *t : a.query));
  const DeviceScope device(a.query);
  Tensor out = empty_heads({p.B, p.H, p.Lq, p.Dv}, a.query);
  p.out = view_of(out);
  if (a.beta) {
    delta_step(p, device.stream());
    return out;
  }
  call.map_inputs();
  p.row_factor = call.workspace({p.B, p.H, p.Lq});
  (call.is_double() ? linear_step<double> : linear_step<float>)(p, device.stream());
  return out;
}

std::vector<Tensor> linear_backward(const char* op, const LinearArguments& a,
                                    const LinearGradArguments& g,
                                    const std::array<bool, kLinearGradients>& needs) {
  return Backward(op, a, g, needs).run();
}

}  // namespace attn::cuda
