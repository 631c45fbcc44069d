// The elementwise feature maps phi of linear attention. Derivatives are functions of phi itself, so
// that a backward pass needs no second look at the input.
#pragma once

#include <cstdint>

namespace attn {

enum class FeatureMap : int32_t {
  kIdentity,
  kElu,      // elu(x) + 1: x + 1 for x > 0, exp(x) elsewhere; derivative min(phi, 1)
  kRelu,     // max(x, 0); derivative 1 where phi > 0
  kSoftmax,  // over the columns of a row; dx = phi (dphi - sum_d phi_d dphi_d)
};
constexpr int64_t kFeatureMaps = 4;

}  // namespace attn
