// Addresses of shared memory, for what a whole warp reads at once.
#pragma once

#include "warp.h"

namespace ptx {

// Throws Fault where that is out of bounds or misaligned.
unsigned char* shared_at(Warp& warp, uint64_t address, unsigned bytes, int lane);

void get_addresses(Warp& warp, const Place& place, uint64_t (&addresses)[kLanes]);

}  // namespace ptx
