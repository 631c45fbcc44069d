#pragma once

#include "bindings/tensor.h"
#include "core/philox.h"

namespace attn {

// The draw of probability p, which needs a seed unless p is 0.
Dropout checked_dropout(double p, const OptionalTensor& seed);

}  // namespace attn
