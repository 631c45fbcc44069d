#include <stdexcept>
#include <string>

#include "check.h"
#include "cpu/bandwidth.h"
#include "cpu/cpu_info.h"
#include "cpu/fma_peak.h"

using attn::CpuCapability;

TEST(capability_names_round_trip) {
  for (int i = 0; i < attn::kCpuCapabilities; ++i) {
    const auto capability = static_cast<CpuCapability>(i);
    CHECK_EQ(
        attn::parse_cpu_capability(attn::capability_name(capability), CpuCapability::kAvx512Bf16),
        capability);
  }
}

TEST(unknown_capability_is_refused) {
  CHECK_THROWS(std::invalid_argument,
               "unknown CPU capability 'avx3', expected one of: generic, avx2, avx512, avx512_bf16",
               attn::parse_cpu_capability("avx3", CpuCapability::kAvx512Bf16));
  CHECK_THROWS(std::invalid_argument, "unknown CPU capability ''",
               attn::parse_cpu_capability("", CpuCapability::kAvx512Bf16));
  CHECK_THROWS(std::invalid_argument, "unknown CPU capability 'AVX2'",
               attn::parse_cpu_capability("AVX2", CpuCapability::kAvx512Bf16));
}

TEST(capability_above_the_machine_is_refused) {
  CHECK_THROWS(std::invalid_argument,
               "CPU capability 'avx512' is not supported by this machine, which has: generic, avx2",
               attn::parse_cpu_capability("avx512", CpuCapability::kAvx2));
  CHECK_EQ(attn::parse_cpu_capability("avx2", CpuCapability::kAvx2), CpuCapability::kAvx2);
}

TEST(capabilities_rise_to_the_best) {
  const auto all = attn::available_cpu_capabilities();
  CHECK_EQ(all.front(), CpuCapability::kGeneric);
  CHECK_EQ(all.back(), attn::best_cpu_capability());
  for (size_t i = 0; i < all.size(); ++i) CHECK_EQ(static_cast<size_t>(all[i]), i);
  CHECK(attn::cpu_capability() <= attn::best_cpu_capability());
#if !defined(__x86_64__)
  CHECK_EQ(all.size(), 1u);
#endif
}

TEST(cache_sizes_are_parsed) {
  CHECK_EQ(attn::parse_cache_size("48K"), 49152);
  CHECK_EQ(attn::parse_cache_size("32M"), 33554432);
  CHECK_EQ(attn::parse_cache_size("1G"), 1073741824);
  CHECK_EQ(attn::parse_cache_size("512"), 512);
  for (const char* text : {"", "K", "48KB", "x", "-1K", "48T"})
    CHECK_EQ(attn::parse_cache_size(text), 0);
}

TEST(cache_sizes_rise) {
  const attn::CacheSizes& sizes = attn::cache_sizes();
  CHECK(sizes.l1d >= 0);
  if (sizes.l1d > 0 && sizes.l2 > 0) CHECK(sizes.l1d <= sizes.l2);
}

TEST(peaks_are_measured_for_every_capability) {
  for (const CpuCapability c : attn::available_cpu_capabilities()) {
    CHECK(attn::fma_peak(c, attn::PeakDtype::kFloat32, 0.01) > 0.0);
    CHECK(attn::fma_peak(c, attn::PeakDtype::kFloat64, 0.01) > 0.0);
    CHECK(attn::fma_peak(c, attn::PeakDtype::kBFloat16, 0.01) > 0.0);
    CHECK(attn::fma_work(c, attn::PeakDtype::kFloat32, 1e-3) >= 1e-3);
  }
  CHECK(attn::read_bandwidth(1 << 16, 0.01) > 0.0);
  CHECK(attn::update_bandwidth(1 << 16, 0.01) > 0.0);
}

TEST(probes_refuse_bad_arguments) {
  using attn::PeakDtype;
  CHECK_THROWS(std::invalid_argument, "seconds",
               attn::fma_peak(CpuCapability::kGeneric, PeakDtype::kFloat32, 0.0));
  CHECK_THROWS(std::invalid_argument, "gflop",
               attn::fma_work(CpuCapability::kGeneric, PeakDtype::kFloat32, -1.0));
  CHECK_THROWS(std::invalid_argument, "bytes", attn::read_bandwidth(100, 0.01));
  if (attn::best_cpu_capability() < CpuCapability::kAvx512Bf16) {
    CHECK_THROWS(std::invalid_argument, "this machine has no avx512_bf16",
                 attn::fma_peak(CpuCapability::kAvx512Bf16, PeakDtype::kFloat32, 0.01));
  }
}
