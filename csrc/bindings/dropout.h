#pragma once

#include "bindings/tensor.h"
#include "core/philox.h"

namespace attn {

// The draw of probability p, but for its seed.
Dropout checked_dropout(double p);

// Where the seed lies, on the device of `beside`; it is not read. A draw needs one.
const int64_t* checked_seed(const OptionalTensor& seed, const Tensor& beside);

}  // namespace attn
