#include "bindings/device_tensor_cuda.h"

namespace attn {

DeviceScope::DeviceScope(const Tensor& t) {
  guard_.emplace(t.get_device_index());
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
}

}  // namespace attn
