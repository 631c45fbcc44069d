// A block that runs: its warps in turn, from barrier to barrier.
#pragma once

#include <cuda_emulation.h>

#include <vector>

#include "warp.h"

namespace ptx {

struct Block {
  Block(const Program& program, const cuda_emulation::Command& command);

  // Throws Fault, with the place.
  void run(unsigned index);

  const Program& program;
  const cuda_emulation::Command& command;
  std::vector<unsigned char> shared;
  std::vector<unsigned char> registers;
  std::vector<Warp> warps;
  cuda_emulation::Buffer buffer{};  // that was used last
};

}  // namespace ptx
