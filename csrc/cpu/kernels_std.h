// Everything kernels.inl uses from elsewhere, read before the compiler is switched to an
// instruction set so that no inline function shared with other files is compiled for it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include "core/linear_params.h"
#include "core/params.h"
#include "core/select_params.h"
#include "cpu/arena.h"
#include "cpu/cpu_info.h"
#include "cpu/kernels.h"
