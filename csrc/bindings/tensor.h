// Tensors of the stable ABI as the kernels see them, and fresh ones.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/params.h"

namespace attn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Throws std::runtime_error with the parts put together: "<argument>: expected <what>, got <what>".
template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  message << "attention_ext: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

using Sizes = std::array<int64_t, 4>;

inline Sizes sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  Sizes result{1, 1, 1, 1};
  for (size_t i = 0; i < 4 && i < sizes.size(); ++i) result[i] = sizes[i];
  return result;
}

// For messages: "(2, 3) float32". Put together only when a check fails.
struct Description {
  const Tensor& tensor;
};
inline Description describe(const Tensor& t) { return {t}; }
std::ostream& operator<<(std::ostream& out, Description description);

bool is_floating(ScalarType type);  // one of the four dtypes of the kernels
Dtype dtype_of(const Tensor& t);    // of a floating tensor

// float32, or float64 for float64
inline ScalarType accumulator_of(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The 4-D tensor with its own strides, 0 where the size is 1.
View view_of(const Tensor& t);

bool on_same_device(const Tensor& t, const Tensor& like);
// For messages: where what goes with `query` must lie, "on the CPU".
const char* place_of(const Tensor& query);

// On the CPU, and on the device of `like`.
Tensor empty(const std::vector<int64_t>& sizes, ScalarType type);
Tensor empty_on(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type);
// (B, H, L, D), dense, of the dtype and on the device of `like`; heads lie inside the rows,
// (B, L, H, D) in memory, where those of `like` do.
Tensor empty_heads(const Sizes& sizes, const Tensor& like);

// Raw operators have no derivatives of their own: one that is asked for must not be silently zero.
void check_no_derivative(const char* op, std::initializer_list<const Tensor*> inputs);

}  // namespace attn
