// A kernel as the interpreter runs it: instructions with their operands' places resolved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace ptx {

struct Warp;
struct Instruction;

// What a kernel does wrong, or what this interpreter does not know.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Does an instruction for the lanes of `mask`, of which there is at least one.
using Action = void (*)(Warp& warp, const Instruction& instruction, uint32_t mask);

enum class Flow : uint8_t {
  kNext,
  kBranch,
  kExit,
  kMeet,      // waits for the lanes of a mask, its last operand
  kMeetWarp,  // waits for the whole warp
  kBarrier,   // waits for the whole block
};

constexpr uint32_t kNowhere = ~0u;

// A register: 32 values of `bytes` at `at` of a warp's file. A predicate has 0 bytes, and is a mask
// of its 32 lanes. An address adds `plus`.
struct Place {
  uint32_t at = kNowhere;
  uint32_t bytes = 0;
  int64_t plus = 0;
};

struct Instruction {
  Action action = nullptr;
  Flow flow = Flow::kNext;
  bool guard_negated = false;
  uint32_t guard = kNowhere;
  uint32_t target = 0;  // of a branch
  uint32_t count = 0;   // of its operands
  const Place* of = nullptr;
};

// A value that all lanes have from the start.
struct Constant {
  Place place;
  uint64_t bits;
};

// Those that differ from lane to lane, or from block to block.
enum class Special { kThread, kBlock, kThreads, kBlocks, kLane };

struct SpecialRegister {
  Place place;
  Special special;
  int dimension;  // 0: x
};

struct Program {
  Program() = default;
  Program(Program&&) = default;  // instructions point into places

  std::string name;
  std::vector<Instruction> instructions;
  std::vector<Place> places;
  std::vector<std::string> texts;  // of each instruction, for messages
  std::vector<Constant> constants;
  std::vector<SpecialRegister> specials;
  size_t register_bytes = 0, local_bytes = 0, parameter_bytes = 0;
  unsigned most_threads = 0;  // of a block
};

}  // namespace ptx
