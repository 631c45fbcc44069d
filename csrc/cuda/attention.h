// The attention operators on CUDA devices, as host code calls them. Kernels run on `stream`, in
// order, and don't wait for it; std::runtime_error if one does not start.
#pragma once

#include "core/params.h"
#include "cuda/attention_splits.h"

namespace attn::cuda {

using Stream = void*;  // cudaStream_t

// One call on a device: all pointers, those of the mask included, are the device's. Forward uses
// the part that is AttentionParams.
struct AttentionCall : AttentionGradParams {
  const int64_t* dropout_seed = nullptr;  // read by the kernels, instead of dropout.seed

  // Forward, where splits.count is not 0: what each split finds, as if there were no other keys.
  Splits splits;
  void* split_out = nullptr;  // [splits.count, B, Hq, Lq, Dv], float or double
  void* split_lse = nullptr;  // [splits.count, B, Hq, Lq], without sinks
};

// The workspace of a backward call: sets plan.row_blocks, plan.chunks and plan.bias_slots, which
// size sink_partial, alibi_partial and dbias_partial. Of the workspace it uses these, row_lse and
// row_delta; dbias_partial only for more than one slot.
void plan_attention_backward(AttentionCall& call);

// What elements of 16 bits are computed with on tensor cores; false, and nothing done, where heads
// are too large for them or the device has none. Forward: out and lse. Backward: dq, dk, dv and
// alibi_partial, from row_lse and row_delta.
template <Dtype kDtype>
bool attention_tensor_forward(const AttentionCall& call, Stream stream);
template <Dtype kDtype>
bool attention_tensor_splits(const AttentionCall& call, Stream stream);  // split_out, split_lse
template <Dtype kDtype>
bool attention_tensor_backward(const AttentionCall& call, Stream stream);

// out and lse, in whichever way fits. T: what is computed in, float or double.
template <class T>
void attention_forward(const AttentionCall& call, Stream stream);

// The same by splits of the keys and their merge.
template <class T>
void attention_splits(const AttentionCall& call, Stream stream);

// The gradients whose views are not null.
template <class T>
void attention_backward(const AttentionCall& call, Stream stream);

}  // namespace attn::cuda
