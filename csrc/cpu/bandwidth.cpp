#include "cpu/bandwidth.h"

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

void increment(Words* data, size_t n) {
  for (size_t i = 0; i < n; i += kStreams) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) data[i + s] += Words{1, 1};
  }
}

// The best rate of bytes_of(buffer, n), which is called again and again.
template <class Pass>
double best_bandwidth(int64_t bytes, double seconds, const Pass& bytes_of) {
  if (bytes < 4096)
    throw std::invalid_argument("bytes must be at least 4096, got " + std::to_string(bytes));
  if (!(seconds > 0.0 && seconds <= 60.0)) {
    throw std::invalid_argument("seconds must be in (0, 60], got " + std::to_string(seconds));
  }
  const size_t n = static_cast<size_t>(bytes) / (sizeof(Words) * kStreams) * kStreams;
  // Written once, so that every page is the buffer's own and not the kernel's page of zeros.
  std::vector<Words> buffer(n, Words{1, 1});
  return 1e-9 * best_rate(seconds, [&](int64_t passes) {
           double done = 0.0;
           for (int64_t pass = 0; pass < passes; ++pass) {
             Words* data = buffer.data();
             // To the compiler another buffer each time: it can't reuse the last result.
             asm volatile("" : "+r"(data) : : "memory");
             done += bytes_of(data, n);
           }
           return done;
         });
}

}  // namespace

double read_bandwidth(int64_t bytes, double seconds) {
  return best_bandwidth(bytes, seconds, [](const Words* data, size_t n) {
    // No word is 0, so neither is the sum; without a use there would be nothing to read.
    return sum(data, n)[0] == 0 ? 0.0 : static_cast<double>(n * sizeof(Words));
  });
}

double update_bandwidth(int64_t bytes, double seconds) {
  return best_bandwidth(bytes, seconds, [](Words* data, size_t n) {
    increment(data, n);
    return static_cast<double>(2 * n * sizeof(Words));
  });
}

}  // namespace attn
