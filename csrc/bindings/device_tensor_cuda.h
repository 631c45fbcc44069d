// The device that a tensor lies on made the current one, and the stream to run on there.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "bindings/tensor.h"

namespace attn {

// Makes a tensor's device the current one, for as long as it lives.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& t);
  void* stream() const { return stream_; }  // the current one of the device
  bool is_capturing() const;                // into a CUDA graph

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

}  // namespace attn
