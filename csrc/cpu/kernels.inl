// The kernels of one instruction set. The including file names it (ATTN_ISA), its register width
// (ATTN_VECTOR_BYTES) and switches the compiler to it, after every header that others share is
// read.
namespace attn {
namespace ATTN_ISA {
namespace {

// Each builds on those before it.
// clang-format off
#include "cpu/simd.h"
#include "cpu/storage.h"
#include "cpu/tile_gemm.h"
#include "cpu/attention_common.h"
#include "cpu/attention_forward.h"
#include "cpu/attention_backward_plan.h"
#include "cpu/attention_backward_rows.h"
#include "cpu/attention_backward.h"
#include "cpu/attention_backward_reduce.h"
#include "cpu/linear_features.h"
#include "cpu/linear_scores.h"
#include "cpu/linear_pass.h"
#include "cpu/linear_forward.h"
#include "cpu/linear_step.h"
#include "cpu/linear_backward.h"
#include "cpu/linear_backward_queries.h"
#include "cpu/linear_backward_keys.h"
#include "cpu/delta_backward.h"
#include "cpu/head_sum.h"
// clang-format on

#define ATTN_STRING_(name) #name
#define ATTN_STRING(name) ATTN_STRING_(name)

template <class Operator>
constexpr auto entry() {
  return Kernel<typename Operator::Params>{&Operator::plan, &Operator::run};
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {
    ATTN_STRING(ATTN_ISA),
    {entry<AttentionForward<float>>(), entry<AttentionForward<double>>()},
    {&plan_attention_backward<float>, &plan_attention_backward<double>},
    {entry<AttentionBackwardRows<float>>(), entry<AttentionBackwardRows<double>>()},
    {entry<AttentionBackward<float>>(), entry<AttentionBackward<double>>()},
    {entry<AttentionBackwardReduce<float>>(), entry<AttentionBackwardReduce<double>>()},
    {entry<LinearStates<float>>(), entry<LinearStates<double>>()},
    {entry<LinearScan<float>>(), entry<LinearScan<double>>()},
    {entry<LinearForward<float>>(), entry<LinearForward<double>>()},
    {entry<LinearStep<float>>(), entry<LinearStep<double>>()},
    {entry<LinearGradStates<float>>(), entry<LinearGradStates<double>>()},
    {entry<LinearGradScan<float>>(), entry<LinearGradScan<double>>()},
    {entry<LinearBackward<float>>(), entry<LinearBackward<double>>()},
    {entry<DeltaBackward<float>>(), entry<DeltaBackward<double>>()},
    {entry<HeadSum<float>>(), entry<HeadSum<double>>()},
};

}  // namespace ATTN_ISA
}  // namespace attn
