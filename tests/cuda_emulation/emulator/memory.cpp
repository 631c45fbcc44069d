// The checks of memory accesses: bounds, alignment, initialisation, and races. Two accesses of
// which one writes are ordered if one thread makes both, or a barrier of the block (of a whole
// warp, within that warp) lies between; blocks are never ordered.
#include <link.h>
#include <pthread.h>

#include <algorithm>

#include "block.h"

namespace cuda_emulation {

namespace {

constexpr size_t kGranule = 2;  // bytes: the smallest element there is
constexpr size_t kNear = 4096;  // so far beside shared memory, nothing else lies there

struct Access {
  const void* pc = nullptr;  // null: none
  unsigned block = 0, thread = 0;
  uint32_t block_epoch = 0, warp_epoch = 0;
};

// What is known of a granule: its last write, and since then its first reader and the last other.
struct Cell {
  Access write, reads[2];
  bool initialised = false, copy_in_flight = false;
};

struct Region {
  Buffer buffer;
  std::vector<Cell> cells;
};

std::vector<Region> regions;
std::vector<Cell> shared_cells;
std::vector<std::pair<uintptr_t, uintptr_t>> readable;  // constants of the program, its own stack
bool any_checked = false;

Access access_here(const void* pc) {
  const Fiber& f = *this_fiber();
  return {pc, block().index, f.linear, f.block_epoch, f.warp_epoch};
}

// A warp-wide read orders nothing even within its own thread: any lane may have made it.
bool ordered(const Access& before, const Access& now, bool by_whole_warp) {
  if (before.block != now.block) return false;
  if (before.block_epoch < now.block_epoch) return true;
  if (before.thread / 32 == now.thread / 32 && before.warp_epoch < now.warp_epoch) return true;
  return before.thread == now.thread && !by_whole_warp;
}

std::string other_thread(const Access& other) {
  return " with block " + std::to_string(other.block) + " thread " + std::to_string(other.thread);
}

void touch(Cell& cell, bool write, const void* pc, bool by_whole_warp, const std::string& name) {
  const Access now = access_here(pc);
  if (cell.copy_in_flight)
    report("race", name + " is used while a copy to it is in flight", pc, cell.write.pc);
  if (cell.write.pc && !ordered(cell.write, now, by_whole_warp))
    report("race",
           (write ? "write after write of " : "read after write of ") + name +
               other_thread(cell.write),
           pc, cell.write.pc);
  if (write) {
    for (const Access& read : cell.reads)
      if (read.pc && !ordered(read, now, by_whole_warp))
        report("race", "write after read of " + name + other_thread(read), pc, read.pc);
    cell.write = now;
    cell.reads[0] = cell.reads[1] = {};
    cell.initialised = true;
    return;
  }
  const Access& first = cell.reads[0];
  const bool again = !first.pc || (first.thread == now.thread && first.block == now.block);
  cell.reads[again ? 0 : 1] = now;
}

void touch_all(std::vector<Cell>& cells, size_t offset, unsigned bytes, bool write, const void* pc,
               bool by_whole_warp, const std::string& name) {
  for (size_t i = offset / kGranule; i <= (offset + bytes - 1) / kGranule; ++i)
    touch(cells[i], write, pc, by_whole_warp, name);
}

void check_shared(ptrdiff_t offset, unsigned bytes, bool write, const void* pc, bool whole_warp) {
  if (offset < 0 || static_cast<size_t>(offset) + bytes > block().shared_bytes) {
    report("shared bounds",
           "offset " + std::to_string(offset) + " of " + std::to_string(block().shared_bytes) +
               " bytes",
           pc);
    abandon_block();
  }
  if (offset % bytes)
    report("misaligned",
           std::to_string(bytes) + " bytes of shared memory at " + std::to_string(offset), pc);
  for (size_t i = offset / kGranule; !write && i <= (offset + bytes - 1) / kGranule; ++i)
    if (!shared_cells[i].initialised) {
      report("uninitialised", "shared memory is read before anything is written", pc);
      shared_cells[i].initialised = true;
    }
  touch_all(shared_cells, offset, bytes, write, pc, whole_warp, "shared memory");
}

Region* region_at(const void* address, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(address);
  Region* found = nullptr;
  for (Region& r : regions) {
    const auto* data = static_cast<const unsigned char*>(r.buffer.data);
    if (data <= at && at + bytes <= data + r.buffer.bytes) found = &r;
  }
  return found;
}

bool is_readable_elsewhere(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  return std::any_of(readable.begin(), readable.end(),
                     [at](const auto& r) { return r.first <= at && at < r.second; });
}

void check_global(const unsigned char* at, unsigned bytes, bool write, const void* pc,
                  bool whole_warp) {
  Region* region = region_at(at, bytes);
  if (!region) {
    if (!write && is_readable_elsewhere(at)) return;
    report("global bounds",
           write ? "write outside of every buffer" : "read outside of every buffer", pc);
    abandon_block();
  }
  const Buffer& buffer = region->buffer;
  if (reinterpret_cast<uintptr_t>(at) % bytes)
    report("misaligned", std::to_string(bytes) + " bytes of " + buffer.name, pc);
  if (write && !buffer.writable) report("global bounds", "write to " + buffer.name, pc);
  touch_all(region->cells, at - static_cast<const unsigned char*>(buffer.data), bytes, write, pc,
            whole_warp, buffer.name);
}

int add_segments(dl_phdr_info* info, size_t, void*) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_LOAD) readable.push_back({begin, begin + segment.p_memsz});
  }
  return 0;
}

void add_own_stack() {
  pthread_attr_t attributes;
  void* stack;
  size_t bytes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &bytes);
  pthread_attr_destroy(&attributes);
  readable.push_back(
      {reinterpret_cast<uintptr_t>(stack), reinterpret_cast<uintptr_t>(stack) + bytes});
}

}  // namespace

bool checked() { return any_checked; }

void set_buffers(std::vector<Buffer> buffers) {
  regions.clear();
  for (Buffer& b : buffers) regions.push_back({std::move(b), {}});
}

const Buffer* buffer_at(const void* address, size_t bytes) {
  const Region* region = region_at(address, bytes);
  return region ? &region->buffer : nullptr;
}

void begin_launch_memory() {
  if (!any_checked) return;
  for (Region& r : regions) r.cells.assign(r.buffer.bytes / kGranule + 1, {});
  readable.clear();
  dl_iterate_phdr(add_segments, nullptr);
  add_own_stack();
}

void begin_block_memory() {
  if (any_checked) shared_cells.assign(block().shared_bytes / kGranule + 1, {});
}

bool is_shared(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  return at + kNear >= block().shared && at < block().shared + block().shared_bytes + kNear;
}

void check_access(const void* address, unsigned bytes, bool write, const void* pc,
                  bool by_whole_warp) {
  if (!current || !any_checked) return;
  const auto* at = static_cast<const unsigned char*>(address);
  const Fiber* self = this_fiber();
  if (self->stack <= at && at < self->stack + kStackBytes) return;
  if (static_cast<const void*>(self) <= address && address < static_cast<const void*>(self + 1))
    return;  // threadIdx and its like
  if (is_shared(at))
    check_shared(at - block().shared, bytes, write, pc, by_whole_warp);
  else
    check_global(at, bytes, write, pc, by_whole_warp);
}

void mark_async_copy(const AsyncCopy& copy, bool in_flight) {
  if (!any_checked || !is_shared(copy.to)) return;
  const size_t offset = copy.to - block().shared;
  for (size_t i = offset / kGranule; i <= (offset + copy.bytes - 1) / kGranule; ++i) {
    Cell& cell = shared_cells[i];
    cell.copy_in_flight = in_flight;
    if (in_flight) continue;
    cell.write = access_here(copy.pc);
    cell.reads[0] = cell.reads[1] = {};
    cell.initialised = true;
  }
}

}  // namespace cuda_emulation

// Where the compiler's calls land.
#define ATTN_PC __builtin_return_address(0)
#define ATTN_HOOKS(n)                                                                             \
  extern "C" void __tsan_read##n(void* p) { cuda_emulation::check_access(p, n, false, ATTN_PC); } \
  extern "C" void __tsan_write##n(void* p) { cuda_emulation::check_access(p, n, true, ATTN_PC); } \
  extern "C" void __tsan_unaligned_read##n(void* p) {                                             \
    cuda_emulation::check_access(p, n, false, ATTN_PC);                                           \
  }                                                                                               \
  extern "C" void __tsan_unaligned_write##n(void* p) {                                            \
    cuda_emulation::check_access(p, n, true, ATTN_PC);                                            \
  }
ATTN_HOOKS(1)
ATTN_HOOKS(2)
ATTN_HOOKS(4)
ATTN_HOOKS(8)
ATTN_HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t n) {
  for (size_t i = 0; i < n; ++i)
    cuda_emulation::check_access(static_cast<char*>(p) + i, 1, false, ATTN_PC);
}
extern "C" void __tsan_write_range(void* p, size_t n) {
  for (size_t i = 0; i < n; ++i)
    cuda_emulation::check_access(static_cast<char*>(p) + i, 1, true, ATTN_PC);
}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() { cuda_emulation::any_checked = true; }
