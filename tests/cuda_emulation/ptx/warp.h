// A warp: its registers, and where each of its lanes stands. Lanes at the same instruction run
// together, those that stand first in the program before others, so that they meet again.
#pragma once

#include <vector>

#include "program.h"

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = ~0u;

struct Block;

// Bytes that arrive in shared memory when their thread waits for their group.
struct AsyncCopy {
  int lane;
  unsigned group;  // of those of its lane, from 0
  unsigned char* to;
  const unsigned char* from;
  unsigned bytes;  // of 16, the others become 0
};

struct Warp {
  const Program* program = nullptr;
  Block* block = nullptr;
  unsigned char* registers = nullptr;
  unsigned first_thread = 0;
  uint32_t lanes = 0;        // that there are
  uint32_t at[kLanes] = {};  // where lanes stand that don't run just now
  uint32_t running = 0, waiting = 0;
  uint32_t position = 0;  // of the group that runs
  bool at_barrier = false;
  std::vector<unsigned char> local;  // memory of each lane, one after the other
  std::vector<AsyncCopy> copies;
  unsigned groups[kLanes] = {};  // that each lane has committed
};

// Until all lanes have ended, or wait at a barrier of the block.
void run(Warp& warp);

}  // namespace ptx
