#include "cpu/read_bandwidth.h"

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/thread_clock.h"

namespace attn {
namespace {

typedef uint64_t Words __attribute__((vector_size(16)));
constexpr int kStreams = 8;

// Sum of n vectors, n a multiple of kStreams; the streams keep several loads in flight.
Words sum(const Words* data, size_t n) {
  Words total[kStreams] = {};
  for (size_t i = 0; i < n; i += kStreams) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) total[s] += data[i + s];
  }
  for (int s = 1; s < kStreams; ++s) total[0] += total[s];
  return total[0];
}

}  // namespace

double read_bandwidth(int64_t bytes, double seconds) {
  if (bytes < 4096)
    throw std::invalid_argument("bytes must be at least 4096, got " + std::to_string(bytes));
  if (!(seconds > 0.0 && seconds <= 60.0)) {
    throw std::invalid_argument("seconds must be in (0, 60], got " + std::to_string(seconds));
  }
  const size_t n = static_cast<size_t>(bytes) / (sizeof(Words) * kStreams) * kStreams;
  // Written once, so that every page is the buffer's own and not the kernel's page of zeros.
  const std::vector<Words> buffer(n, Words{1, 1});
  return 1e-9 * best_rate(seconds, [&](int64_t passes) {
           Words total{};
           for (int64_t pass = 0; pass < passes; ++pass) {
             const Words* data = buffer.data();
             // To the compiler another buffer each time: it can't reuse the last sum.
             asm volatile("" : "+r"(data) : : "memory");
             total += sum(data, n);
           }
           // Every word is 1, so the sum is never 0; without a use there would be nothing to read.
           if (total[0] == 0) return 0.0;
           return static_cast<double>(passes) * static_cast<double>(n * sizeof(Words));
         });
}

}  // namespace attn
