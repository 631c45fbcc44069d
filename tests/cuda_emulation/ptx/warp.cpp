#include "warp.h"

#include <algorithm>

#include "lanes.h"

namespace ptx {

namespace {

// The lanes that run together now, and the first place at which others do.
struct Group {
  uint32_t mask = 0, at = kNowhere, others = kNowhere;
};

Group next_group(const Warp& warp) {
  Group group;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(warp.running, lane)) continue;
    const uint32_t at = warp.at[lane];
    if (at < group.at) {
      group.others = group.at;
      group.mask = 0, group.at = at;
    }
    if (at == group.at)
      group.mask |= 1u << lane;
    else
      group.others = std::min(group.others, at);
  }
  return group;
}

void move(Warp& warp, uint32_t mask, uint32_t to) {
  for (int lane = 0; lane < kLanes; ++lane)
    if (has(mask, lane)) warp.at[lane] = to;
}

uint32_t guarded(Warp& warp, const Instruction& in, uint32_t mask) {
  if (in.guard == kNowhere) return mask;
  const uint32_t holds = predicate(warp, {in.guard});
  return mask & (in.guard_negated ? ~holds : holds);
}

// Which lanes an instruction waits for: those of the operand that is its mask, or all.
uint32_t expected(Warp& warp, const Instruction& in, uint32_t mask) {
  if (in.flow != Flow::kMeet) return warp.lanes;
  const int first = __builtin_ctz(mask);
  const uint32_t* members = lanes<uint32_t>(warp, in.of[in.count - 1]);
  for (int lane = first; lane < kLanes; ++lane)
    if (has(mask, lane) && (members[lane] != members[first] || !has(members[lane], lane)))
      throw Fault("divergence: lanes disagree on who takes part");
  return members[first] & warp.lanes;
}

uint32_t waiting_at(const Warp& warp, uint32_t at) {
  uint32_t mask = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    if (has(warp.waiting, lane) && warp.at[lane] == at) mask |= 1u << lane;
  return mask;
}

// The lanes of `mask` arrive at an instruction that waits for others, and do it once all are here.
// Returns whether they go on as they came.
bool meet(Warp& warp, const Instruction& in, uint32_t mask, uint32_t at) {
  const uint32_t all = expected(warp, in, mask);
  if (in.flow != Flow::kBarrier && (all & ~mask) == 0) {
    in.action(warp, in, mask);
    return true;
  }
  move(warp, mask, at);
  warp.running &= ~mask;
  warp.waiting |= mask;
  if (all & ~waiting_at(warp, at)) return false;
  if (in.flow == Flow::kBarrier) {
    warp.at_barrier = true;
    return false;
  }
  in.action(warp, in, all);
  move(warp, all, at + 1);
  warp.waiting &= ~all;
  warp.running |= all;
  return false;
}

// Both return whether the whole group goes on, and where; else its lanes know where they stand.
bool branch(Warp& warp, const Instruction& in, uint32_t group, uint32_t mask, uint32_t& at) {
  if (mask == 0 || mask == group) {
    at = mask ? in.target : at + 1;
    return true;
  }
  move(warp, mask, in.target);
  move(warp, group & ~mask, at + 1);
  return false;
}

bool step(Warp& warp, const Instruction& in, uint32_t group, uint32_t& at) {
  const uint32_t mask = guarded(warp, in, group);
  if (in.flow == Flow::kNext) {
    if (mask) in.action(warp, in, mask);
  } else if (in.flow == Flow::kBranch) {
    return branch(warp, in, group, mask, at);
  } else if (mask) {
    move(warp, group & ~mask, at + 1);
    if (in.flow == Flow::kExit) {
      warp.running &= ~mask;
      return false;
    }
    if (!meet(warp, in, mask, at)) return false;
  }
  ++at;
  return true;
}

// Until it parts, ends, waits, or others may join.
void run_group(Warp& warp, const Group& group) {
  const Instruction* const program = warp.program->instructions.data();
  for (uint32_t& at = warp.position = group.at; at < group.others;)
    if (!step(warp, program[at], group.mask, at)) return;
  move(warp, group.mask, warp.position);
}

}  // namespace

void run(Warp& warp) {
  while (warp.running) run_group(warp, next_group(warp));
  if (warp.waiting && !warp.at_barrier)
    throw Fault("divergence: lanes wait for others of their warp that never come");
}

}  // namespace ptx
