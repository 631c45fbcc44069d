#include "bindings/tensor.h"

namespace attn {

namespace {

const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    default:
      return "another dtype";
  }
}

struct Device {
  int32_t type = aoti_torch_device_type_cpu(), index = 0;
};

Device device_of(const Tensor& t) {
  Device device;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device.type));
  device.index = t.get_device_index();
  return device;
}

Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                     ScalarType type, const Device& device) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      static_cast<int32_t>(torch::stable::detail::to<int32_t>(torch::stable::detail::from(type))),
      device.type, device.index, &handle));
  return Tensor(handle);
}

Tensor empty_dense(const std::vector<int64_t>& sizes, ScalarType type, const Device& device) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= sizes[i] > 1 ? sizes[i] : 1;
  }
  return empty_strided(sizes, strides, type, device);
}

}  // namespace

std::ostream& operator<<(std::ostream& out, Description description) {
  const Tensor& t = description.tensor;
  out << "(";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  return out << ") " << type_name(t.scalar_type()) << (t.is_cpu() ? "" : " not on the CPU");
}

bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      return Dtype::kFloat32;
  }
}

View view_of(const Tensor& t) {
  View view;
  view.data = t.data_ptr();
  view.dtype = dtype_of(t);
  const auto sizes = t.sizes(), strides = t.strides();
  for (size_t i = 0; i < sizes.size() && i < 4; ++i)
    view.stride[i] = sizes[i] == 1 ? 0 : strides[i];
  return view;
}

bool on_same_device(const Tensor& t, const Tensor& like) {
  const Device a = device_of(t), b = device_of(like);
  return a.type == b.type && a.index == b.index;
}

const char* place_of(const Tensor& query) {
  return query.is_cpu() ? "on the CPU" : "on query's device";
}

Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) {
  return empty_dense(sizes, type, Device());
}

Tensor empty_on(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return empty_dense(sizes, type, device_of(like));
}

Tensor empty_heads(const Sizes& sizes, const Tensor& like) {
  const auto [B, H, L, D] = sizes;
  const ScalarType type = like.scalar_type();
  if (H > 1 && L > 1 && like.stride(1) < like.stride(2)) {
    const int64_t d = D > 1 ? D : 1;
    return empty_strided({B, H, L, D}, {L * H * d, d, H * d, 1}, type, device_of(like));
  }
  return empty_on(like, {B, H, L, D}, type);
}

// resize_ to the size a tensor has changes nothing, and refuses one that is being differentiated:
// the stable ABI has no question for it.
void check_no_derivative(const char* op, std::initializer_list<const Tensor*> inputs) {
  if (!aoti_torch_grad_mode_is_enabled()) return;
  for (const Tensor* t : inputs) {
    if (!t) continue;
    std::array<StableIValue, 3> stack{torch::stable::detail::from(*t),
                                      torch::stable::detail::from(t->sizes()),
                                      torch::stable::detail::from(std::nullopt)};
    const bool refused = torch_call_dispatcher("aten::resize_", "", stack.data(),
                                               TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS;
    check(!refused, op,
          ": an input requires a derivative, which this operator does not have by itself; ",
          "call attention_ext.attention of the Python package");
    Tensor same = torch::stable::detail::to<Tensor>(stack[0]);
  }
}

}  // namespace attn
