// How fast one thread reads memory, and changes it: the measure for kernels that are bound by it.
#pragma once

#include <cstdint>

namespace attn {

// The best rate in GB/s at which one thread sums up a buffer of `bytes`, in its own CPU time, over
// passes that fill about `seconds`. The size chooses the level: above the last cache it is main
// memory. Throws std::invalid_argument if `bytes` is below 4096 or `seconds` not in (0, 60].
double read_bandwidth(int64_t bytes, double seconds);

// The same of adding to every element in place: bytes read and bytes written both count.
double update_bandwidth(int64_t bytes, double seconds);

}  // namespace attn
