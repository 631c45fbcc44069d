// The delta rule on CUDA devices, as host code calls it. Kernels run on `stream`, in order, and
// don't wait for it; std::runtime_error if one does not start.
#pragma once

#include <cstddef>

#include "core/linear_params.h"

namespace attn::cuda {

using Stream = void*;  // cudaStream_t

// All pointers of the parameters are the device's; parts, checkpoints and padded widths are not
// used. Gradients are those of LinearGradParams: of every head of out, and of every state head.
// The workspace, at a multiple of 16 bytes, is a call's own until its kernels have run.
size_t delta_workspace_bytes(const LinearParams& params);
size_t delta_backward_workspace_bytes(const LinearGradParams& params);

void delta_forward(const LinearParams& params, void* workspace, Stream stream);
void delta_backward(const LinearGradParams& params, void* workspace, Stream stream);

// One token; `initial`, contiguous and in the compute type, is written to.
void delta_step(const LinearParams& params, Stream stream);

// The same in one arithmetic: T is float or double, any dtype of storage.
template <class T>
void delta_plain_forward(const LinearParams& params, void* workspace, Stream stream);
template <class T>
void delta_plain_backward(const LinearGradParams& params, void* workspace, Stream stream);
template <class T>
void delta_plain_step(const LinearParams& params, Stream stream);

// On tensor cores; false, and nothing done, where the device has none.
template <Dtype kDtype>
bool delta_tensor_forward(const LinearParams& params, void* workspace, Stream stream);
template <Dtype kDtype>
bool delta_tensor_backward(const LinearGradParams& params, void* workspace, Stream stream);

}  // namespace attn::cuda
