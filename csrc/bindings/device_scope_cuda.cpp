#include <cuda_runtime_api.h>

#include "bindings/device_tensor_cuda.h"

namespace attn {

DeviceScope::DeviceScope(const Tensor& t) {
  guard_.emplace(t.get_device_index());
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
}

bool DeviceScope::is_capturing() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream_), &status);
  check(error == cudaSuccess, "the state of a CUDA stream: ", cudaGetErrorString(error));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace attn
