#include "bindings/device_tensor_cuda.h"

namespace attn {

namespace {

int32_t device_type_of(const Tensor& t) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

Tensor empty_strided_on(const Tensor& like, const std::vector<int64_t>& sizes,
                        const std::vector<int64_t>& strides, ScalarType type) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type_of(like),
      like.get_device_index(), &handle));
  return Tensor(handle);
}

}  // namespace

bool on_same_device(const Tensor& t, const Tensor& like) {
  return device_type_of(t) == device_type_of(like) &&
         t.get_device_index() == like.get_device_index();
}

Tensor empty_on(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= std::max<int64_t>(sizes[i], 1);
  }
  return empty_strided_on(like, sizes, strides, type);
}

Tensor empty_heads_on(const Tensor& like, const Sizes& sizes) {
  const auto [B, H, L, D] = sizes;
  if (H > 1 && L > 1 && like.stride(1) < like.stride(2)) {
    const int64_t d = std::max<int64_t>(D, 1);
    return empty_strided_on(like, {B, H, L, D}, {L * H * d, d, H * d, 1}, like.scalar_type());
  }
  return empty_on(like, {B, H, L, D}, like.scalar_type());
}

}  // namespace attn
