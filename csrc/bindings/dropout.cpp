#include "bindings/dropout.h"

#include <algorithm>
#include <cmath>

namespace attn {

Dropout checked_dropout(double p) {
  check(p >= 0 && p <= 1, "dropout_p: expected 0 to 1, got ", p);
  Dropout dropout;
  if (p == 0) return dropout;
  dropout.threshold =
      static_cast<uint32_t>(std::min(4294967295.0, std::nearbyint(p * 4294967296.0)));
  dropout.all = p == 1;
  dropout.keep_scale = dropout.all ? 0 : 1 / (1 - p);
  return dropout;
}

const int64_t* checked_seed(const OptionalTensor& seed, const Tensor& beside) {
  check(seed && on_same_device(*seed, beside) && seed->scalar_type() == ScalarType::Long &&
            seed->numel() == 1,
        "dropout_seed: expected one int64 ", place_of(beside), " with dropout_p > 0");
  return static_cast<const int64_t*>(seed->data_ptr());
}

}  // namespace attn
