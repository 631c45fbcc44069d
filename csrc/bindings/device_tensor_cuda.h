// Tensors on the device of another one, and the stream to run on there.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "bindings/tensor.h"

namespace attn {

bool on_same_device(const Tensor& t, const Tensor& like);

// As `empty` and `empty_heads`, on the device of `like`.
Tensor empty_on(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type);
Tensor empty_heads_on(const Tensor& like, const Sizes& sizes);

// Makes a tensor's device the current one, for as long as it lives.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& t);
  void* stream() const { return stream_; }  // the current one of the device

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

}  // namespace attn
