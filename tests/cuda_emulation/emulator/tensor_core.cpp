// ldmatrix, mma.sync and cp.async: what each lane of a warp gives and gets.
#include <algorithm>

#include "block.h"

namespace cuda_emulation {

namespace {

constexpr int kLanes = 32;
#define ATTN_PC __builtin_return_address(0)

struct LoadMatrices {
  const unsigned char* row;
  uint32_t* result;
  bool transposed;
  const void* pc;
};

bool is_whole_warp(const char* operation, unsigned lanes) {
  if (lanes != ~0u) report("divergence", std::string(operation) + " by a part of a warp");
  return lanes == ~0u;
}

// The rows of one matrix are read at once: they have to lie in 8 different groups of 4 banks.
void check_banks(void** arguments, int matrix) {
  unsigned groups = 0;
  const void* pc = nullptr;
  for (int r = 0; r < 8; ++r) {
    const auto& a = *static_cast<LoadMatrices*>(arguments[8 * matrix + r]);
    groups |= 1u << reinterpret_cast<uintptr_t>(a.row) / 16 % 8;
    pc = a.pc;
  }
  if (groups != 0xff) report("bank conflict", "rows of a matrix share banks", pc);
}

void distribute(void** arguments, unsigned lanes) {
  if (!is_whole_warp("load_matrices", lanes)) return;
  const auto argument = [&](int lane) -> LoadMatrices& {
    return *static_cast<LoadMatrices*>(arguments[lane]);
  };
  uint16_t matrices[4][8][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const LoadMatrices& a = argument(lane);
    check_access(a.row, 16, false, a.pc, true);
    memcpy(matrices[lane / 8][lane % 8], a.row, 16);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const LoadMatrices& a = argument(lane);
    const int g = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const auto& matrix = matrices[m];
      const uint16_t low = a.transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint16_t high = a.transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      a.result[m] = low | uint32_t{high} << 16;
    }
  }
  for (int m = 0; checked() && m < 4; ++m) check_banks(arguments, m);
}

struct MultiplyAdd {
  float* sum;
  const uint32_t *a, *b;
  float (*decode)(uint32_t);
};

// Products are exact; a hardware sum may round otherwise than this one, in float from 0 to 15.
void multiply(void** arguments, unsigned lanes) {
  if (!is_whole_warp("multiply_add", lanes)) return;
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& argument = *static_cast<MultiplyAdd*>(arguments[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int n = 0; n < 4; ++n)
      for (int e = 0; e < 2; ++e)
        a[g + 8 * (n % 2)][2 * t + 8 * (n / 2) + e] = argument.decode(argument.a[n] >> 16 * e);
    for (int n = 0; n < 2; ++n)
      for (int e = 0; e < 2; ++e)
        b[2 * t + 8 * n + e][g] = argument.decode(argument.b[n] >> 16 * e);
  }
  float products[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) products[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < kLanes; ++lane) {
    float* sum = static_cast<MultiplyAdd*>(arguments[lane])->sum;
    for (int n = 0; n < 4; ++n) sum[n] += products[lane / 4 + 8 * (n / 2)][2 * (lane % 4) + n % 2];
  }
}

void arrive(AsyncCopy& copy) {
  if (copy.done) return;
  memcpy(copy.to, copy.from, copy.source_bytes);
  memset(copy.to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
  copy.done = true;
}

}  // namespace

void load_matrices(uint32_t (&result)[4], const void* row, bool transposed) {
  LoadMatrices argument{static_cast<const unsigned char*>(row), result, transposed, ATTN_PC};
  warp_collective("load_matrices", ~0u, &argument, distribute);
}

void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  float (*decode)(uint32_t)) {
  MultiplyAdd argument{sum, a, b, decode};
  warp_collective("multiply_add", ~0u, &argument, multiply);
}

void copy_async(void* to, const void* from, unsigned bytes, unsigned source_bytes) {
  const void* pc = ATTN_PC;
  const auto* source = static_cast<const unsigned char*>(from);
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes) {
    report("misaligned", "a copy of " + std::to_string(bytes) + " bytes", pc);
    abandon_block();
  }
  if (source_bytes > bytes) {
    report("async copy", "more bytes than there is room for", pc);
    abandon_block();
  }
  for (unsigned at = 0; at < source_bytes; at += 2) check_access(source + at, 2, false, pc);
  check_access(to, bytes, true, pc);
  AsyncCopy copy{static_cast<unsigned char*>(to), source, bytes, source_bytes, pc, false};
  mark_async_copy(copy, true);
  if (options().seed && random_number() % 2) arrive(copy);
  this_fiber()->open_group.push_back(copy);
}

void end_copy_group() {
  Fiber& f = *this_fiber();
  f.groups.push_back(std::move(f.open_group));
  f.open_group.clear();
}

void wait_for_copies(unsigned groups_left) {
  auto& groups = this_fiber()->groups;
  while (groups.size() > groups_left) {
    for (AsyncCopy& copy : groups.front()) {
      arrive(copy);
      mark_async_copy(copy, false);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace cuda_emulation
