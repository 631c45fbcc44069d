// The kernels of one instruction set. The including file names it (ATTN_ISA), its register width
// (ATTN_VECTOR_BYTES) and switches the compiler to it, after every header that others share is
// read.
namespace attn {
namespace ATTN_ISA {
namespace {

// Each builds on those before it.
// clang-format off
#include "cpu/simd.h"
#include "cpu/operand.h"
#include "cpu/storage.h"
#include "cpu/operand_rows.h"
#include "cpu/tile_gemm.h"
#include "cpu/blocks.h"
#include "cpu/attention_common.h"
#include "cpu/attention_row_tile.h"
#include "cpu/attention_forward.h"
#include "cpu/attention_forward_gathered.h"
#include "cpu/attention_lse.h"
#include "cpu/attention_backward_plan.h"
#include "cpu/attention_backward_rows.h"
#include "cpu/attention_backward_queries.h"
#include "cpu/attention_backward_bias.h"
#include "cpu/attention_backward_keys.h"
#include "cpu/attention_backward.h"
#include "cpu/attention_backward_reduce.h"
#include "cpu/attention_map.h"
#include "cpu/linear_features.h"
#include "cpu/linear_scores.h"
#include "cpu/linear_pass.h"
#include "cpu/linear_forward.h"
#include "cpu/linear_step.h"
#include "cpu/linear_backward.h"
#include "cpu/linear_backward_queries.h"
#include "cpu/linear_backward_keys.h"
#include "cpu/delta_pass.h"
#include "cpu/delta_backward.h"
#include "cpu/head_sum.h"
#include "cpu/select_keys.h"
#include "cpu/select_blocks.h"
// clang-format on

#define ATTN_STRING_(name) #name
#define ATTN_STRING(name) ATTN_STRING_(name)

template <class Operator>
constexpr auto entry() {
  return Kernel<typename Operator::Params>{&Operator::plan, &Operator::run};
}

template <class E>
constexpr AttentionMapKernels attention_map_kernels() {
  return {&attention_map_chunks, entry<AttentionMapRows<E>>(), entry<AttentionMap<E>>(),
          entry<AttentionMapReduce>()};
}

template <class E>
constexpr AttentionKernels attention_kernels() {
  return {entry<AttentionForwardKernel<E>>(),
          &plan_attention_backward<Compute<E>>,
          entry<AttentionBackwardRows<E>>(),
          entry<AttentionBackward<E>>(),
          entry<AttentionBackwardReduce<Compute<E>>>(),
          attention_map_kernels<E>()};
}

template <class A>
constexpr LinearKernels linear_kernels() {
  return {entry<WorkItems<LinearStates<A>>>(),
          entry<WorkItems<LinearScan<A>>>(),
          entry<WorkItems<LinearForward<A>>>(),
          entry<WorkItems<LinearStep<A>>>(),
          entry<WorkItems<LinearGradStates<A>>>(),
          entry<WorkItems<LinearGradScan<A>>>(),
          entry<WorkItems<LinearBackward<A>>>(),
          entry<WorkItems<DeltaStates<A>>>(),
          entry<WorkItems<DeltaGradStates<A>>>(),
          entry<WorkItems<DeltaBackward<A>>>(),
          entry<HeadSum<A>>()};
}

template <class A>
constexpr SelectKernels select_kernels() {
  return {entry<SelectKeys<A>>(), entry<SelectBlocks<A>>()};
}

}  // namespace

#if defined(ATTN_BFLOAT16_PAIRS)
void use_bfloat16_pairs(Kernels& kernels) {
  kernels.name = ATTN_STRING(ATTN_ISA);
  kernels.attention[static_cast<int>(Dtype::kBFloat16)] = attention_kernels<BFloat16>();
}
#else
// bfloat16 and float16 compute in float, converted tile by tile.
extern const Kernels kernels;
const Kernels kernels = {ATTN_STRING(ATTN_ISA),
                         {attention_kernels<float>(), attention_kernels<double>(),
                          attention_kernels<float>(), attention_kernels<float>()},
                         {linear_kernels<float>(), linear_kernels<double>()},
                         {select_kernels<float>(), select_kernels<double>()}};
#endif

}  // namespace ATTN_ISA
}  // namespace attn
