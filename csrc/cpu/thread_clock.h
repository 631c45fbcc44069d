// CPU time of the calling thread: what other processes do on the machine doesn't count.
#pragma once

#include <cstdint>
#include <ctime>

namespace attn {

inline double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The highest of run(n) = work done, divided by its time, over samples of at least a tenth of
// `seconds` each; run takes the number of repetitions.
template <class Run>
double best_rate(double seconds, const Run& run) {
  int64_t repetitions = 1;
  double best = 0.0;
  const double first = thread_seconds();
  while (true) {
    const double start = thread_seconds();
    const double work = run(repetitions);
    const double elapsed = thread_seconds() - start;
    if (elapsed < 0.1 * seconds) {
      repetitions *= elapsed < 0.01 * seconds ? 8 : 2;
      continue;
    }
    best = work / elapsed > best ? work / elapsed : best;
    if (thread_seconds() - first >= seconds) return best;
  }
}

}  // namespace attn
