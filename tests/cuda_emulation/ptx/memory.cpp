// ld, st, cp.async and the conversions of addresses. A generic address is the host's, of global
// memory; what lies elsewhere has the number of its space in the upper byte.
#include "memory.h"

#include <cstdio>

#include "block.h"
#include "lanes.h"

namespace ptx {

namespace {

enum class Space : uint64_t { kGlobal, kShared, kLocal, kParameter, kGeneric };

constexpr int kSpaceShift = 56;
constexpr uint64_t kOffset = (uint64_t{1} << kSpaceShift) - 1;

[[noreturn]] void fail(const char* kind, uint64_t address, unsigned bytes, int lane) {
  char text[128];
  snprintf(text, sizeof text, "%s: %u bytes at 0x%llx, in lane %d", kind, bytes,
           static_cast<unsigned long long>(address), lane);
  throw Fault(text);
}

unsigned char* inside(unsigned char* data, size_t size, const char* kind, uint64_t offset,
                      unsigned bytes, int lane) {
  if (offset > size || bytes > size - offset) fail(kind, offset, bytes, lane);
  return data + offset;
}

unsigned char* global(Block& block, uint64_t address, unsigned bytes, bool write, int lane) {
  auto* at = reinterpret_cast<unsigned char*>(address);
  cuda_emulation::Buffer& last = block.buffer;
  const auto* data = static_cast<const unsigned char*>(last.data);
  if (at < data || at + bytes > data + last.bytes || (write && !last.writable)) {
    const cuda_emulation::Buffer* buffer = cuda_emulation::buffer_at(at, bytes);
    if (!buffer || (write && !buffer->writable)) fail("global bounds", address, bytes, lane);
    last = *buffer;
  }
  return at;
}

template <Space kSpace>
unsigned char* locate(Warp& warp, uint64_t address, unsigned bytes, bool write, int lane) {
  Block& block = *warp.block;
  if constexpr (kSpace == Space::kGeneric) {
    const uint64_t offset = address & kOffset;
    switch (static_cast<Space>(address >> kSpaceShift)) {
      case Space::kGlobal:
        return locate<Space::kGlobal>(warp, address, bytes, write, lane);
      case Space::kShared:
        return locate<Space::kShared>(warp, offset, bytes, write, lane);
      case Space::kLocal:
        return locate<Space::kLocal>(warp, offset, bytes, write, lane);
      case Space::kParameter:
        return locate<Space::kParameter>(warp, offset, bytes, write, lane);
      default:
        fail("generic address", address, bytes, lane);
    }
  }
  if (address % bytes) fail("misaligned", address, bytes, lane);
  if constexpr (kSpace == Space::kShared)
    return inside(block.shared.data(), block.shared.size(), "shared bounds", address, bytes, lane);
  if constexpr (kSpace == Space::kLocal) {
    const size_t size = block.program.local_bytes;
    return inside(warp.local.data() + lane * size, size, "local bounds", address, bytes, lane);
  }
  if constexpr (kSpace == Space::kParameter) {
    if (write) fail("write to a parameter", address, bytes, lane);
    auto* data = static_cast<unsigned char*>(const_cast<void*>(block.command.parameters));
    return inside(data, block.command.parameter_bytes, "parameter bounds", address, bytes, lane);
  }
  return global(block, address, bytes, write, lane);
}

}  // namespace

unsigned char* shared_at(Warp& warp, uint64_t address, unsigned bytes, int lane) {
  return locate<Space::kShared>(warp, address, bytes, false, lane);
}

void get_addresses(Warp& warp, const Place& place, uint64_t (&addresses)[kLanes]) {
  get_bits(warp, place, addresses);
  for (uint64_t& address : addresses) address += place.plus;
  if (place.bytes == 4)
    for (uint64_t& address : addresses) address &= 0xffffffffu;
}

namespace {

// Vectors of kCount elements, whose registers may be wider.
template <Space kSpace, class T, unsigned kCount>
void load(Warp& warp, const Instruction& in, uint32_t mask) {
  uint64_t addresses[kLanes], values[kCount][kLanes];
  get_addresses(warp, in.of[kCount], addresses);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const unsigned char* from =
        locate<kSpace>(warp, addresses[lane], sizeof(T) * kCount, false, lane);
    for (unsigned n = 0; n < kCount; ++n) {
      T value;
      memcpy(&value, from + n * sizeof(T), sizeof(T));
      values[n][lane] = static_cast<uint64_t>(static_cast<int64_t>(value));
    }
  }
  for (unsigned n = 0; n < kCount; ++n) put_bits(warp, in.of[n], values[n], mask);
}

template <Space kSpace, class T, unsigned kCount>
void store(Warp& warp, const Instruction& in, uint32_t mask) {
  uint64_t addresses[kLanes], values[kCount][kLanes];
  get_addresses(warp, in.of[0], addresses);
  for (unsigned n = 0; n < kCount; ++n) get_bits(warp, in.of[1 + n], values[n]);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    unsigned char* to = locate<kSpace>(warp, addresses[lane], sizeof(T) * kCount, true, lane);
    for (unsigned n = 0; n < kCount; ++n) memcpy(to + n * sizeof(T), &values[n][lane], sizeof(T));
  }
}

template <Space kSpace, class T, unsigned kCount>
void add_vector(Operations& table, const std::string& space, const std::string& type) {
  const std::string vector = kCount == 1 ? "" : ".v" + std::to_string(kCount);
  std::vector<Kind> kinds(kCount, {sizeof(T), true});
  kinds.insert(kinds.begin(), kAddress);
  table["st" + space + vector + type] = {store<kSpace, T, kCount>, Flow::kNext, kinds};
  kinds.erase(kinds.begin());
  kinds.push_back(kAddress);
  const Operation operation{load<kSpace, T, kCount>, Flow::kNext, kinds};
  table["ld" + space + vector + type] = operation;
  if (kSpace == Space::kGlobal) table["ld.global.nc" + vector + type] = operation;
}

template <Space kSpace, class T>
void add_vectors(Operations& table, const std::string& space, const std::string& type) {
  add_vector<kSpace, T, 1>(table, space, type);
  add_vector<kSpace, T, 2>(table, space, type);
  if constexpr (sizeof(T) <= 4) add_vector<kSpace, T, 4>(table, space, type);
}

template <Space kSpace>
void add_accesses(Operations& table, const std::string& space) {
  for_types<uint8_t, uint16_t, uint32_t, uint64_t>([&]<class T>(T) {
    add_vectors<kSpace, T>(table, space, suffix<T>());
    add_vectors<kSpace, T>(table, space, bits_suffix<T>());
    add_vectors<kSpace, std::make_signed_t<T>>(table, space, suffix<std::make_signed_t<T>>());
  });
  add_vectors<kSpace, uint32_t>(table, space, ".f32");
  add_vectors<kSpace, uint64_t>(table, space, ".f64");
}

// Between an address in a space and a generic one.
template <Space kSpace, bool kToGeneric>
void convert_address(Warp& warp, const Instruction& in, uint32_t mask) {
  uint64_t addresses[kLanes];
  get_bits(warp, in.of[1], addresses);
  constexpr auto kNumber = static_cast<uint64_t>(kSpace);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (kToGeneric)
      addresses[lane] |= kNumber << kSpaceShift;
    else if (has(mask, lane) && addresses[lane] >> kSpaceShift != kNumber)
      fail("an address of another space", addresses[lane], 0, lane);
    else
      addresses[lane] &= kOffset;
  }
  put_bits(warp, in.of[0], addresses, mask);
}

template <Space kSpace>
void add_address_conversions(Operations& table, const std::string& space) {
  table["cvta" + space + ".u64"] = {
      convert_address<kSpace, true>, Flow::kNext, {kOf<uint64_t>, kOf<uint64_t>}};
  table["cvta.to" + space + ".u64"] = {
      convert_address<kSpace, false>, Flow::kNext, {kOf<uint64_t>, kOf<uint64_t>}};
}

constexpr unsigned kCopyBytes = 16;

void begin_copy(Warp& warp, const Instruction& in, uint32_t mask) {
  uint64_t to[kLanes], from[kLanes];
  get_addresses(warp, in.of[0], to);
  get_addresses(warp, in.of[1], from);
  const uint32_t *room = lanes<uint32_t>(warp, in.of[2]), *bytes = lanes<uint32_t>(warp, in.of[3]);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    if (room[lane] != kCopyBytes || bytes[lane] > kCopyBytes || from[lane] % kCopyBytes)
      fail("async copy", from[lane], bytes[lane], lane);
    const unsigned char* source = nullptr;
    if (bytes[lane]) source = global(*warp.block, from[lane], bytes[lane], false, lane);
    warp.copies.push_back({lane, warp.groups[lane],
                           locate<Space::kShared>(warp, to[lane], kCopyBytes, true, lane), source,
                           bytes[lane]});
  }
}

void end_group(Warp& warp, const Instruction&, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) warp.groups[lane] += has(mask, lane);
}

// Until all but the last groups have arrived: as late as can be.
void wait_for_groups(Warp& warp, const Instruction& in, uint32_t mask) {
  const uint32_t* left = lanes<uint32_t>(warp, in.of[0]);
  std::erase_if(warp.copies, [&](const AsyncCopy& copy) {
    if (!has(mask, copy.lane) || copy.group + left[copy.lane] >= warp.groups[copy.lane])
      return false;
    memset(copy.to, 0, kCopyBytes);
    if (copy.bytes) memcpy(copy.to, copy.from, copy.bytes);
    return true;
  });
}

}  // namespace

void add_memory(Operations& table) {
  add_accesses<Space::kGeneric>(table, "");
  add_accesses<Space::kGlobal>(table, ".global");
  add_accesses<Space::kShared>(table, ".shared");
  add_accesses<Space::kLocal>(table, ".local");
  add_accesses<Space::kParameter>(table, ".param");
  add_address_conversions<Space::kGlobal>(table, ".global");
  add_address_conversions<Space::kShared>(table, ".shared");
  add_address_conversions<Space::kLocal>(table, ".local");
  add_address_conversions<Space::kParameter>(table, ".param");
  const Kind number = kOf<uint32_t>;
  table["cp.async.cg.shared.global"] = {
      begin_copy, Flow::kNext, {kAddress, kAddress, number, number}};
  table["cp.async.commit_group"] = {end_group, Flow::kNext, {}};
  table["cp.async.wait_group"] = {wait_for_groups, Flow::kNext, {number}};
}

}  // namespace ptx
