// attention_ext::attention and the raw operators under it, on the CPU.
#include "bindings/attention_cpu.h"
#include "bindings/threads.h"

namespace attn {

namespace {

// The gradients asked for, and the workspace of the three passes.
class Backward {
 public:
  Backward(const char* op, const AttentionArguments& a, const AttentionGradArguments& g)
      : a_(a), type_(accumulator_of(a.query.scalar_type())) {
    check_no_derivative(op, {&g.grad_out, g.grad_lse ? &*g.grad_lse : nullptr});
    fill_attention_on_cpu(op, a, p_, built_);
    fill_results(a, g, p_);
    gradients_ = make_gradients(a, g.needs, p_);
    p_.plan = attention_kernels(p_).backward_plan(p_);
    allocate_workspace();
  }

  AttentionGradients run() {
    const AttentionKernels& kernels = attention_kernels(p_);
    run_items(kernels.backward_rows, p_);
    run_items(kernels.backward, p_);
    run_items(kernels.backward_reduce, p_);
    return {gradients_[0], gradients_[1], gradients_[2],
            gradients_[3], gradients_[4], gradients_[5]};
  }

 private:
  const AttentionArguments& a_;
  const ScalarType type_;
  AttentionGradParams p_;
  BlockTableArrays built_;
  std::vector<Tensor> gradients_;
  Tensor workspace_, bias_sums_;

  // The workspace is one allocation, carved twice: to measure it and to place it.
  void allocate_workspace() {
    Arena measure(nullptr);
    carve(measure);
    workspace_ = empty({std::max<int64_t>(measure.used(), 1)}, ScalarType::Byte);
    Arena arena(workspace_.data_ptr());
    carve(arena);
    if (!p_.dbias) return;
    const bool direct = p_.plan.bias_slots == 1 && a_.bias->scalar_type() == type_;
    const int64_t* size = p_.bias_size;
    bias_sums_ = direct ? gradients_[3]
                        : empty({p_.plan.bias_slots, size[0], size[1], size[2], size[3]}, type_);
    if (size[2] == 1 || size[3] == 1) torch::stable::zero_(bias_sums_);
    p_.dbias_partial = bias_sums_.data_ptr();
  }

  void carve(Arena& arena) {
    const GradPlan& plan = p_.plan;
    const int64_t rows = p_.B * p_.Hq * p_.Lq, element = type_ == ScalarType::Double ? 8 : 4;
    p_.row_lse = arena.take<char>(2 * rows * element);
    p_.row_delta = arena.take<char>(rows * element);
    p_.row_finite = arena.take<uint8_t>(rows);
    p_.dq_partial =
        arena.take<char>(p_.B * p_.Hq * plan.dq_buffers * plan.dq_rows * plan.dq_width * element);
    if (p_.mask.table)
      p_.dq_touched =
          arena.take<uint8_t>(p_.B * p_.Hq * plan.dq_buffers * p_.mask.table.query_tiles);
    if (p_.dsinks) p_.sink_partial = arena.take<double>(p_.B * p_.Hq * plan.row_blocks);
    if (p_.dalibi_slopes) p_.alibi_partial = arena.take<double>(p_.B * p_.Hq * plan.chunks);
  }
};

#define ATTN_INPUT_SCHEMA "Tensor query, Tensor key, Tensor value, "
#define ATTN_TERM_SCHEMA(scale)                                                  \
  ATTN_MASK_SCHEMA ", Tensor? bias, Tensor? sinks, Tensor? alibi_slopes, " scale \
                   " scale, float softcap, float dropout_p, Tensor? dropout_seed"

}  // namespace

AttentionResults AttentionOnCpu::forward(const char* op, const AttentionArguments& a) {
  AttentionParams p;
  BlockTableArrays built;
  fill_attention_on_cpu(op, a, p, built);
  const Sizes size = sizes_of(a.query);
  Tensor out = empty_heads({size[0], size[1], size[2], p.Dv}, a.query);
  Tensor lse = empty({size[0], size[1], size[2]}, accumulator_of(a.query.scalar_type()));
  p.out = view_of(out);
  p.lse = view_of(lse);
  run_items(attention_kernels(p).forward, p);
  return {out, lse};
}

AttentionGradients AttentionOnCpu::backward(const char* op, const AttentionArguments& a,
                                            const AttentionGradArguments& g) {
  return Backward(op, a, g).run();
}

STABLE_TORCH_LIBRARY_FRAGMENT(attention_ext, m) {
  m.def("attention(" ATTN_INPUT_SCHEMA ATTN_TERM_SCHEMA("float?") ") -> (Tensor out, Tensor lse)");
  m.def("_attention_forward(" ATTN_INPUT_SCHEMA ATTN_TERM_SCHEMA(
      "float") ") -> (Tensor out, Tensor lse)");
  m.def("_attention_backward(Tensor grad_out, Tensor? grad_lse, " ATTN_INPUT_SCHEMA
        "Tensor out, Tensor lse, " ATTN_TERM_SCHEMA("float")
        ", bool[] needs) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsinks, Tensor dalibi)");
}

STABLE_TORCH_LIBRARY_IMPL(attention_ext, CPU, m) {
  using Attention = AttentionOperators<AttentionOnCpu>;
  m.impl("attention", TORCH_BOX(&Attention::attention));
  m.impl("_attention_forward", TORCH_BOX(&Attention::forward));
  m.impl("_attention_backward", TORCH_BOX(&Attention::backward));
}

}  // namespace attn
