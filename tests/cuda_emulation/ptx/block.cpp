#include "block.h"

#include <algorithm>

#include "lanes.h"

namespace ptx {

namespace {

constexpr size_t kAlignment = 64;

void fill(Warp& warp, const Constant& constant) {
  if (constant.place.bytes == 0) {
    put_predicate(warp, constant.place, constant.bits ? kAllLanes : 0, kAllLanes);
    return;
  }
  uint64_t values[kLanes];
  std::fill(std::begin(values), std::end(values), constant.bits);
  put_bits(warp, constant.place, values, kAllLanes);
}

unsigned component(const dim3& size, int dimension) {
  return dimension == 0 ? size.x : dimension == 1 ? size.y : size.z;
}

unsigned component(unsigned index, const dim3& size, int dimension) {
  if (dimension == 0) return index % size.x;
  return dimension == 1 ? index / size.x % size.y : index / (size.x * size.y);
}

unsigned value_of(const SpecialRegister& r, const cuda_emulation::Command& command, unsigned block,
                  unsigned thread) {
  switch (r.special) {
    case Special::kThread:
      return component(thread, command.block, r.dimension);
    case Special::kBlock:
      return component(block, command.grid, r.dimension);
    case Special::kThreads:
      return component(command.block, r.dimension);
    case Special::kBlocks:
      return component(command.grid, r.dimension);
    case Special::kLane:
      return thread % kLanes;
  }
  return 0;
}

void start(Warp& warp, unsigned block) {
  const Block& b = *warp.block;
  for (const SpecialRegister& r : b.program.specials)
    for (int lane = 0; lane < kLanes; ++lane)
      lanes<uint32_t>(warp, r.place)[lane] =
          value_of(r, b.command, block, warp.first_thread + lane);
  std::fill(std::begin(warp.at), std::end(warp.at), 0);
  std::fill(std::begin(warp.groups), std::end(warp.groups), 0);
  warp.running = warp.lanes;
  warp.waiting = 0;
  warp.at_barrier = false;
  warp.copies.clear();
}

[[noreturn]] void fail(const Warp& warp, unsigned block, const std::string& what) {
  const Program& program = *warp.program;
  const std::string& text =
      program.texts[std::min<size_t>(warp.position, program.texts.size() - 1)];
  throw Fault(what + "; block " + std::to_string(block) + ", threads from " +
              std::to_string(warp.first_thread) + " on, at `" + text + "` of " + program.name);
}

// The barrier that a warp waits at.
const Instruction& barrier_of(const Warp& warp) {
  return warp.program->instructions[warp.at[__builtin_ctz(warp.waiting)]];
}

bool votes(const Instruction& barrier) { return barrier.of[0].bytes == 0; }

// All warps are at a barrier, of one number and kind: they go on, with whether any thread said yes.
void pass_barrier(Block& block) {
  const Instruction& first = barrier_of(block.warps.front());
  bool any = false;
  for (Warp& warp : block.warps) {
    const Instruction& barrier = barrier_of(warp);
    const Place& number = barrier.of[votes(barrier)];
    if (votes(barrier) != votes(first) || number.at != first.of[votes(first)].at)
      throw Fault("divergence: warps wait at different barriers");
    if (votes(barrier)) any |= (predicate(warp, barrier.of[2]) & warp.lanes) != 0;
  }
  for (Warp& warp : block.warps) {
    const Instruction& barrier = barrier_of(warp);
    if (votes(barrier)) put_predicate(warp, barrier.of[0], any ? kAllLanes : 0, warp.lanes);
    for (uint32_t& at : warp.at) ++at;
    warp.running = warp.lanes;
    warp.waiting = 0;
    warp.at_barrier = false;
  }
}

}  // namespace

Block::Block(const Program& program, const cuda_emulation::Command& command)
    : program(program), command(command), shared(command.shared_bytes) {
  const unsigned threads = command.block.x * command.block.y * command.block.z;
  warps.resize((threads + kLanes - 1) / kLanes);
  const size_t file = (program.register_bytes + kAlignment - 1) / kAlignment * kAlignment;
  registers.assign(warps.size() * file + kAlignment, 0xff);
  auto* aligned = reinterpret_cast<unsigned char*>(
      (reinterpret_cast<uintptr_t>(registers.data()) + kAlignment - 1) / kAlignment * kAlignment);
  for (size_t w = 0; w < warps.size(); ++w) {
    Warp& warp = warps[w];
    warp.program = &program;
    warp.block = this;
    warp.registers = aligned + w * file;
    warp.first_thread = static_cast<unsigned>(w) * kLanes;
    const unsigned left = threads - warp.first_thread;
    warp.lanes = left >= kLanes ? kAllLanes : (1u << left) - 1;
    warp.local.resize(kLanes * program.local_bytes);
    for (const Constant& constant : program.constants) fill(warp, constant);
  }
}

void Block::run(unsigned index) {
  std::fill(shared.begin(), shared.end(), 0xff);  // NaN in every floating type
  for (Warp& warp : warps) start(warp, index);
  const Warp* current = &warps.front();
  try {
    for (;;) {
      size_t waiting = 0;
      for (Warp& warp : warps) {
        current = &warp;
        ptx::run(warp);
        waiting += warp.at_barrier;
        if (!warp.at_barrier && !warp.copies.empty())
          throw Fault("async copy: still in flight when the thread ends");
      }
      if (waiting == 0) return;
      if (waiting < warps.size()) throw Fault("divergence: some warps ended before a barrier");
      pass_barrier(*this);
    }
  } catch (const Fault& fault) {
    fail(*current, index, fault.what());
  }
}

}  // namespace ptx
