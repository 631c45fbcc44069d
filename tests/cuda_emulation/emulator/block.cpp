#include "block.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>

namespace cuda_emulation {

Thread* current = nullptr;

namespace {

constexpr size_t kGuardBytes = 8192;  // around stacks and shared memory

Block the_block;
std::vector<Diagnostic> the_diagnostics;
std::set<std::string> reported;

ucontext_t fresh_context(Fiber* fiber, void (*entry)()) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber->stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
  return context;
}

void run_fiber();

[[noreturn]] void resume(Fiber* fiber) {
  current = fiber;
  if (!fiber) _longjmp(the_block.scheduler, 1);
  if (fiber->started) _longjmp(fiber->context, 1);
  fiber->started = true;
  const ucontext_t context = fresh_context(fiber, run_fiber);
  setcontext(&context);
  abort();
}

Fiber* pick() {
  Block& b = the_block;
  if (b.abandoned || b.next_ready == b.ready.size()) return nullptr;
  if (options().seed)
    std::swap(b.ready[b.next_ready],
              b.ready[b.next_ready + random_number() % (b.ready.size() - b.next_ready)]);
  Fiber* fiber = b.ready[b.next_ready++];
  if (b.next_ready == b.ready.size()) {
    b.ready.clear();
    b.next_ready = 0;
  }
  return fiber;
}

void suspend() {
  Fiber* const self = this_fiber();
  Fiber* const next = pick();
  if (next == self) return;
  if (_setjmp(self->context) == 0) resume(next);
}

void make_ready(Fiber* fiber) { the_block.ready.push_back(fiber); }

void run_fiber() {
  the_block.run(the_block.argument);
  Fiber* const self = this_fiber();
  for (const auto& group : self->groups)
    for (const AsyncCopy& copy : group)
      if (copy.source_bytes && !copy.done)
        report("async copy", "still in flight when the thread ends", copy.pc);
  for (const AsyncCopy& copy : self->open_group) report("async copy", "never committed", copy.pc);
  self->finished = true;
  the_block.finished++;
  resume(pick());
}

void prepare_fibers(dim3 grid, dim3 size) {
  Block& b = the_block;
  while (b.fibers.size() < b.threads) {
    b.fibers.push_back(std::make_unique<Fiber>());
    void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) abort();
    b.fibers.back()->stack = static_cast<unsigned char*>(memory) + kGuardBytes;
  }
  for (unsigned t = 0; t < b.threads; ++t) {
    Fiber& f = *b.fibers[t];
    f.index = {t % size.x, t / size.x % size.y, t / (size.x * size.y)};
    f.block = {b.index % grid.x, b.index / grid.x % grid.y, b.index / (grid.x * grid.y)};
    f.block_size = size;
    f.grid_size = grid;
    f.linear = t, f.warp = t / 32, f.lane = t % 32;
    f.shared = b.shared;
    f.started = f.finished = false;
    f.block_epoch = f.warp_epoch = 0;
    f.groups.clear();
    f.open_group.clear();
    make_ready(&f);
  }
}

void report_deadlock() {
  std::map<std::string, unsigned> places;
  for (unsigned t = 0; t < the_block.threads; ++t) {
    const Fiber& f = *the_block.fibers[t];
    places[f.finished ? "the end" : f.waits_at]++;
  }
  std::string text = "no thread can go on:";
  for (const auto& [place, threads] : places)
    text += " " + std::to_string(threads) + " at " + place + ";";
  report("divergence", text);
}

void run_block(unsigned index, dim3 grid, dim3 size) {
  Block& b = the_block;
  b.index = index;
  b.finished = b.at_barrier = 0;
  b.vote = b.abandoned = false;
  b.ready.clear();
  b.next_ready = 0;
  b.meetings.assign((b.threads + 31) / 32, {});
  b.random_state = options().seed * 0x9e3779b97f4a7c15u ^ (index + 1) * 0xbf58476d1ce4e5b9u;
  memset(b.shared, 0xff, b.shared_bytes);  // NaN in every floating type
  begin_block_memory();
  prepare_fibers(grid, size);
  if (_setjmp(b.scheduler) == 0) resume(pick());
  current = nullptr;
  if (!b.abandoned && b.finished != b.threads) report_deadlock();
}

bool device_refuses(dim3 grid, dim3 size, size_t shared_bytes) {
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  return !grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 ||
         grid.z > 65535 || !threads || threads > 1024 || shared_bytes > options().max_shared;
}

}  // namespace

Options& options() {
  static Options the_options;
  return the_options;
}
std::vector<Diagnostic>& diagnostics() { return the_diagnostics; }
Block& block() { return the_block; }

uint64_t random_number() {  // xorshift64
  uint64_t& x = the_block.random_state;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  return x;
}

void report(const char* kind, std::string text, const void* pc, const void* other_pc) {
  if (the_diagnostics.empty()) reported.clear();
  char place[64];
  snprintf(place, sizeof place, "%p %p", pc, other_pc);
  if (!reported.insert(kind + std::string(" ") + (pc ? place : text.c_str())).second) return;
  if (current)
    text = "block " + std::to_string(the_block.index) + " thread " +
           std::to_string(current->linear) + ": " + text;
  if (pc) text += " at " + source_line(pc);
  if (other_pc) text += ", the other at " + source_line(other_pc);
  the_diagnostics.push_back({kind, text});
}

void abandon_block() {
  the_block.abandoned = true;
  resume(nullptr);
}

bool block_barrier(bool vote) {
  Block& b = the_block;
  Fiber* const self = this_fiber();
  self->waits_at = "a barrier of the block";
  b.vote |= vote;
  if (++b.at_barrier < b.threads) {
    suspend();
    return b.vote_result;
  }
  b.at_barrier = 0;
  b.vote_result = b.vote;
  b.vote = false;
  for (unsigned t = 0; t < b.threads; ++t) {
    b.fibers[t]->block_epoch++;
    make_ready(b.fibers[t].get());
  }
  suspend();
  return b.vote_result;
}

void warp_collective(const char* operation, unsigned mask, void* argument, WarpWork work) {
  Block& b = the_block;
  Fiber* const self = this_fiber();
  auto& meetings = b.meetings[self->warp];
  if (!(mask >> self->lane & 1)) {
    report("divergence", std::string(operation) + " by a lane outside its mask");
    abandon_block();
  }
  WarpMeeting* meeting = nullptr;
  for (WarpMeeting& m : meetings) {
    if (m.mask == mask && m.operation == operation) {
      meeting = &m;
    } else if (m.mask & mask) {
      report("divergence",
             std::string("lanes of one warp at ") + m.operation + " and " + operation);
      abandon_block();
    }
  }
  if (!meeting) {
    meetings.push_back({operation, mask, 0, {}});
    meeting = &meetings.back();
  }
  meeting->arguments[self->lane] = argument;
  meeting->arrived |= 1u << self->lane;
  const unsigned in_warp = b.threads - self->warp * 32;
  const unsigned lanes = in_warp >= 32 ? mask : mask & ((1u << in_warp) - 1);
  if (meeting->arrived != lanes) {
    self->waits_at = operation;
    suspend();
    return;
  }
  work(meeting->arguments, lanes);
  for (unsigned lane = 0; lane < 32; ++lane)
    if (lanes >> lane & 1) make_ready(b.fibers[self->warp * 32 + lane].get());
  meetings.erase(meetings.begin() + (meeting - meetings.data()));
  suspend();
}

// Only a whole warp's barrier counts as an order of its memory accesses.
void sync_warp(unsigned mask) {
  warp_collective("__syncwarp", mask, nullptr, [](void**, unsigned lanes) {
    if (lanes != ~0u) return;
    for (unsigned lane = 0; lane < 32; ++lane)
      the_block.fibers[current->warp * 32 + lane]->warp_epoch++;
  });
}

uint64_t shuffle_bits(unsigned mask, uint64_t value, int operand, int width, Shuffle kind) {
  struct Argument {
    uint64_t value, result;
    int operand, width;
    Shuffle kind;
  } argument{value, value, operand, width, kind};
  warp_collective("a shuffle", mask, &argument, [](void** arguments, unsigned lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      Argument& a = *static_cast<Argument*>(arguments[lane]);
      const int first = lane & ~(a.width - 1), end = first + a.width;
      int source = a.kind == Shuffle::kIndex  ? first + (a.operand & (a.width - 1))
                   : a.kind == Shuffle::kUp   ? lane - a.operand
                   : a.kind == Shuffle::kDown ? lane + a.operand
                                              : lane ^ a.operand;
      if (source < first || source >= end) source = lane;
      if (lanes >> source & 1)
        a.result = static_cast<Argument*>(arguments[source])->value;
      else
        report("divergence", "a shuffle reads a lane outside its mask");
    }
  });
  return argument.result;
}

unsigned ballot(unsigned mask, bool vote) {
  struct Argument {
    bool vote;
    unsigned result;
  } argument{vote, 0};
  warp_collective("a vote", mask, &argument, [](void** arguments, unsigned lanes) {
    unsigned result = 0;
    for (int lane = 0; lane < 32; ++lane)
      if (lanes >> lane & 1)
        result |= unsigned{static_cast<Argument*>(arguments[lane])->vote} << lane;
    for (int lane = 0; lane < 32; ++lane)
      if (lanes >> lane & 1) static_cast<Argument*>(arguments[lane])->result = result;
  });
  return argument.result;
}

std::vector<Launch>& launches() {
  static std::vector<Launch> the_launches;
  return the_launches;
}

void note_launch(const void* kernel, int threads, size_t shared_bytes) {
  Dl_info library{};
  dladdr(kernel, &library);
  const auto address =
      reinterpret_cast<uintptr_t>(kernel) - reinterpret_cast<uintptr_t>(library.dli_fbase);
  for (Launch& launch : launches()) {
    if (launch.kernel != address) continue;
    launch.threads = std::max(launch.threads, threads);
    launch.shared_bytes = std::max(launch.shared_bytes, shared_bytes);
    return;
  }
  launches().push_back({address, threads, shared_bytes});
}

void run_grid(dim3 grid, dim3 size, size_t shared_bytes, void (*run)(void*), void* argument) {
  if (device_refuses(grid, size, shared_bytes)) {
    report("launch", "a configuration that the device refuses");
    return;
  }
  Block& b = the_block;
  b.threads = size.x * size.y * size.z;
  b.run = run;
  b.argument = argument;
  std::vector<unsigned char> memory(shared_bytes + 2 * kGuardBytes);
  const auto address = reinterpret_cast<uintptr_t>(memory.data()) + kGuardBytes;
  b.shared = reinterpret_cast<unsigned char*>(address / 128 * 128);
  b.shared_bytes = shared_bytes;
  begin_launch_memory();
  const unsigned blocks = grid.x * grid.y * grid.z;
  for (unsigned index = 0; index < blocks; ++index) run_block(index, grid, size);
}

}  // namespace cuda_emulation
