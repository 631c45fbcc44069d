// A running block: its fibers and their schedule. One at a time, in one OS thread.
#pragma once

#include <csetjmp>
#include <memory>
#include <string>
#include <vector>

#include "cuda_emulation.h"

namespace cuda_emulation {

constexpr size_t kStackBytes = 256 << 10;

// Bytes that are on their way to shared memory.
struct AsyncCopy {
  unsigned char* to;
  const unsigned char* from;
  unsigned bytes, source_bytes;
  const void* pc;
  bool done;
};

struct Fiber : Thread {
  unsigned char* stack = nullptr;
  bool started = false, finished = false;
  const char* waits_at = "";  // for messages
  jmp_buf context;
  // How many barriers of the block, and of the whole warp, this thread has passed.
  uint32_t block_epoch = 0, warp_epoch = 0;
  std::vector<AsyncCopy> open_group;
  std::vector<std::vector<AsyncCopy>> groups;
};

struct WarpMeeting {
  const char* operation;
  unsigned mask, arrived;
  void* arguments[32];
};

struct Block {
  unsigned index = 0, threads = 0, finished = 0;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> ready;
  size_t next_ready = 0;
  std::vector<std::vector<WarpMeeting>> meetings;  // per warp
  unsigned at_barrier = 0;
  bool vote = false, vote_result = false, abandoned = false;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  uint64_t random_state = 1;
  void (*run)(void*) = nullptr;
  void* argument = nullptr;
  jmp_buf scheduler;
};

Block& block();
inline Fiber* this_fiber() { return static_cast<Fiber*>(current); }
uint64_t random_number();

// Records what the current thread did wrong; the same fault at the same place once only.
void report(const char* kind, std::string text, const void* pc = nullptr,
            const void* other_pc = nullptr);
// Ends the block: nothing sensible can follow.
[[noreturn]] void abandon_block();

// "file.cuh:12 < caller.cuh:34", as far as the debug information tells.
std::string source_line(const void* pc);

// memory.cpp: what the checks know of a launch and of a block.
void begin_launch_memory();
void begin_block_memory();
void check_access(const void* address, unsigned bytes, bool write, const void* pc,
                  bool by_whole_warp = false);
void mark_async_copy(const AsyncCopy& copy, bool in_flight);
bool is_shared(const void* address);

}  // namespace cuda_emulation
