// The kernels of the instruction set in use.
#pragma once

#include "cpu/kernels.h"

namespace attn {

// Chosen at the first call; throws std::invalid_argument as cpu_capability() does.
const Kernels& kernels();

}  // namespace attn
