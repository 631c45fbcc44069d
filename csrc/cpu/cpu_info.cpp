#include "cpu/cpu_info.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace attn {
namespace {

constexpr const char* kNames[kCpuCapabilities] = {"generic", "avx2", "avx512", "avx512_bf16"};
constexpr const char* kVariable = "ATTENTION_EXT_CPU_CAPABILITY";

#if defined(__x86_64__)
// Not every compiler knows "f16c" in __builtin_cpu_supports. Its registers are AVX's, so AVX2
// support covers the operating system's part.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

CpuCapability detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) {
    return CpuCapability::kGeneric;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512cd")) {
    return CpuCapability::kAvx2;
  }
  return __builtin_cpu_supports("avx512bf16") ? CpuCapability::kAvx512Bf16 : CpuCapability::kAvx512;
}
#else
CpuCapability detect() { return CpuCapability::kGeneric; }
#endif

std::string names_up_to(CpuCapability best) {
  std::string names = kNames[0];
  for (int i = 1; i <= static_cast<int>(best); ++i) names += std::string(", ") + kNames[i];
  return names;
}

std::string sysfs_line(int index, const char* file) {
  std::ifstream stream("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/" +
                       file);
  std::string line;
  std::getline(stream, line);
  return line;
}

CacheSizes read_cache_sizes() {
  CacheSizes sizes;
  for (int index = 0; index < 8; ++index) {
    const std::string level = sysfs_line(index, "level"), type = sysfs_line(index, "type");
    if (type != "Data" && type != "Unified") continue;
    const int64_t bytes = parse_cache_size(sysfs_line(index, "size"));
    if (level == "1") sizes.l1d = bytes;
    if (level == "2") sizes.l2 = bytes;
    if (level == "3") sizes.l3 = bytes;
  }
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  // Containers may hide sysfs; sysconf answers 0 or -1 where it doesn't know either.
  const auto fill = [](int64_t& bytes, int name) {
    if (bytes == 0) bytes = sysconf(name) > 0 ? sysconf(name) : 0;
  };
  fill(sizes.l1d, _SC_LEVEL1_DCACHE_SIZE);
  fill(sizes.l2, _SC_LEVEL2_CACHE_SIZE);
  fill(sizes.l3, _SC_LEVEL3_CACHE_SIZE);
#endif
  return sizes;
}

}  // namespace

const char* capability_name(CpuCapability capability) {
  return kNames[static_cast<int>(capability)];
}

CpuCapability best_cpu_capability() {
  static const CpuCapability best = detect();
  return best;
}

std::vector<CpuCapability> available_cpu_capabilities() {
  std::vector<CpuCapability> all;
  for (int i = 0; i <= static_cast<int>(best_cpu_capability()); ++i) {
    all.push_back(static_cast<CpuCapability>(i));
  }
  return all;
}

CpuCapability parse_cpu_capability(std::string_view name, CpuCapability best) {
  for (int i = 0; i < kCpuCapabilities; ++i) {
    if (name != kNames[i]) continue;
    if (i <= static_cast<int>(best)) return static_cast<CpuCapability>(i);
    throw std::invalid_argument(
        std::string("CPU capability '") + kNames[i] +
        "' is not supported by this machine, which has: " + names_up_to(best));
  }
  throw std::invalid_argument("unknown CPU capability '" + std::string(name) +
                              "', expected one of: " + names_up_to(CpuCapability::kAvx512Bf16));
}

CpuCapability cpu_capability() {
  static const CpuCapability capability = [] {
    const char* forced = std::getenv(kVariable);
    if (forced == nullptr || *forced == '\0') return best_cpu_capability();
    try {
      return parse_cpu_capability(forced, best_cpu_capability());
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string(kVariable) + ": " + error.what());
    }
  }();
  return capability;
}

const CacheSizes& cache_sizes() {
  static const CacheSizes sizes = read_cache_sizes();
  return sizes;
}

int64_t parse_cache_size(std::string_view text) {
  int64_t value = 0;
  size_t i = 0;
  while (i < text.size() && text[i] >= '0' && text[i] <= '9' && i < 12)
    value = value * 10 + (text[i++] - '0');
  if (i == 0 || i + 1 < text.size()) return 0;
  if (i == text.size()) return value;
  switch (text[i]) {
    case 'K':
      return value << 10;
    case 'M':
      return value << 20;
    case 'G':
      return value << 30;
    default:
      return 0;
  }
}

}  // namespace attn
