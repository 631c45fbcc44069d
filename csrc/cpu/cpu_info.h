// What this machine's processor can do, and which instruction set the kernels are to use.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace attn {

// In rising order; each includes the ones before it. Other architectures have kGeneric only.
enum class CpuCapability : int {
  kGeneric,     // the baseline of the architecture
  kAvx2,        // AVX2, FMA, F16C
  kAvx512,      // AVX-512 F, BW, VL, DQ, CD
  kAvx512Bf16,  // and AVX-512-BF16
};
inline constexpr int kCpuCapabilities = 4;

// The name that ATTENTION_EXT_CPU_CAPABILITY uses: generic, avx2, avx512, avx512_bf16.
const char* capability_name(CpuCapability capability);

// The highest capability of this machine, the operating system's consent included.
CpuCapability best_cpu_capability();

// kGeneric up to best_cpu_capability().
std::vector<CpuCapability> available_cpu_capabilities();

// The capability of that name. Throws std::invalid_argument if there is none, or if it is above
// `best`.
CpuCapability parse_cpu_capability(std::string_view name, CpuCapability best);

// The capability in use: ATTENTION_EXT_CPU_CAPABILITY if it is set and not empty, else the best
// one. Read at the first call that succeeds; throws as parse_cpu_capability does.
CpuCapability cpu_capability();

// Bytes of data cache that one core reaches; 0 where the system doesn't tell.
struct CacheSizes {
  int64_t l1d = 0;
  int64_t l2 = 0;
  int64_t l3 = 0;
};
const CacheSizes& cache_sizes();

// "48K", "2048K", "32M" or "1G" of sysfs in bytes; 0 if it is none of these.
int64_t parse_cache_size(std::string_view text);

}  // namespace attn
