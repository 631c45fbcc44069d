// The emulator, on small kernels: right ones give the right result and no finding, broken ones the
// finding they deserve. Built with the compiler's calls, as checked kernels are.
#include <cuda_emulation.h>

#include <algorithm>
#include <cstdio>
#include <functional>

namespace {

using cuda_emulation::diagnostics;
constexpr int kThreads = 64;

unsigned char* shared() { return cuda_emulation::current->shared; }
int* shared_ints() { return reinterpret_cast<int*>(shared()); }

struct Case {
  const char* name;
  const char* finding;  // the kind that is expected, null for none
  std::function<void()> kernel;
  int shared_bytes = kThreads * 4;
  int blocks = 1;
  int threads = kThreads;
};

alignas(16) int global[6 * kThreads];
int* const undeclared = new int[kThreads]();
int inputs[kThreads];  // declared as read-only

void declare() {
  cuda_emulation::set_buffers(
      {{global, sizeof global, "global", true}, {inputs, sizeof inputs, "inputs", false}});
}

int failures = 0;

void expect(bool holds, const char* name, const char* what) {
  if (holds) return;
  failures++;
  printf("FAILED %s: %s\n", name, what);
}

void run(const Case& c) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    cuda_emulation::options().seed = seed;
    diagnostics().clear();
    std::fill(std::begin(global), std::end(global), 0);
    declare();
    cuda_emulation::launch({static_cast<unsigned>(c.blocks)}, {static_cast<unsigned>(c.threads)},
                           c.shared_bytes, c.kernel);
    const auto& found = diagnostics();
    const bool right = c.finding ? std::any_of(found.begin(), found.end(),
                                               [&](const auto& d) { return d.kind == c.finding; })
                                 : found.empty();
    if (right) continue;
    failures++;
    printf("FAILED %s, seed %d: expected %s, found %s\n", c.name, static_cast<int>(seed),
           c.finding ? c.finding : "nothing", found.empty() ? "nothing" : found[0].text.c_str());
  }
}

void reverse(bool with_barrier) {
  const int t = threadIdx.x;
  shared_ints()[t] = t;
  if (with_barrier) __syncthreads();
  global[t] = shared_ints()[kThreads - 1 - t];
}

void neighbour_in_warp(bool with_barrier) {
  const int t = threadIdx.x;
  shared_ints()[t] = t;
  if (with_barrier) __syncwarp();
  global[t] = shared_ints()[t ^ 1];
}

void write_after_read(bool with_barrier) {
  const int t = threadIdx.x;
  shared_ints()[t] = t;
  __syncthreads();
  const int value = shared_ints()[kThreads - 1 - t];
  if (with_barrier) __syncthreads();
  shared_ints()[t] = value;
  global[t] = value;
}

const Case kCases[] = {
    {"a reversal", nullptr, [] { reverse(true); }},
    {"a reversal without its barrier", "race", [] { reverse(false); }},
    {"neighbours of a warp", nullptr, [] { neighbour_in_warp(true); }},
    {"neighbours of a warp without order", "race", [] { neighbour_in_warp(false); }},
    {"a value replaced", nullptr, [] { write_after_read(true); }},
    {"a value replaced too early", "race", [] { write_after_read(false); }},
    {"all threads write one place", "race", [] { global[0] = static_cast<int>(threadIdx.x); }},
    {"blocks write one place", "race",
     [] {
       if (threadIdx.x == 0) global[0] = static_cast<int>(blockIdx.x);
     },
     0, 2},
    {"blocks write their own", nullptr, [] { global[blockIdx.x * blockDim.x + threadIdx.x] = 1; },
     0, 2},
    {"shared memory nobody wrote", "uninitialised",
     [] { global[threadIdx.x] = shared_ints()[threadIdx.x]; }},
    {"a write behind shared memory", "shared bounds", [] { shared_ints()[threadIdx.x + 1] = 1; }},
    {"a read behind a buffer", "global bounds",
     [] { shared_ints()[threadIdx.x] = undeclared[threadIdx.x]; }},
    {"a write to what is read-only", "global bounds", [] { inputs[threadIdx.x] = 1; }},
    {"a misaligned read", "misaligned",
     [] {
       const auto* odd = reinterpret_cast<const char*>(global) + blockDim.x / 32;
       shared_ints()[threadIdx.x] = reinterpret_cast<const int*>(odd)[0];
     }},
    {"a barrier in a branch", "divergence",
     [] {
       if (threadIdx.x < 32) __syncthreads();
     }},
    {"a shuffle in a branch", "divergence",
     [] {
       if (threadIdx.x % 2) global[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
     }},
    {"a shuffle and a vote in one warp", "divergence",
     [] { threadIdx.x % 2 ? __ballot_sync(~0u, 1) : __shfl_xor_sync(~0u, 1u, 1); }},
    {"too much shared memory", "launch", [] {}, 200 << 10},
    {"too many threads", "launch", [] {}, 0, 1, 2048},
};

void test_results() {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    cuda_emulation::options().seed = seed;
    diagnostics().clear();
    declare();
    std::fill(std::begin(global), std::end(global), 0);
    cuda_emulation::launch({2, 3}, {kThreads}, 0, [&] {
      const int t = threadIdx.x, lane = t % 32;
      bool right = __shfl_xor_sync(~0u, t, 5) == (t ^ 5);
      right &= __shfl_sync(~0u, int64_t{t}, 3, 16) == t / 16 * 16 + 3;
      right &= __shfl_up_sync(~0u, t, 2) == (lane < 2 ? t : t - 2);
      right &= __shfl_down_sync(~0u, 1.5 * t, 1, 8) == 1.5 * (t % 8 == 7 ? t : t + 1);
      right &= __ballot_sync(~0u, lane < 5) == 31;
      right &= __syncthreads_or(t == 63) == 1 && __syncthreads_or(0) == 0;
      right &= gridDim.x == 2 && gridDim.y == 3 && blockDim.x == kThreads;
      global[(blockIdx.y * 2 + blockIdx.x) * kThreads + t] = right;
    });
    for (const int right : global) expect(right, "results", "a collective gave a wrong value");
    expect(diagnostics().empty(), "results", "something was found");
  }
}

void test_reversal_result() {
  declare();
  cuda_emulation::launch({1}, {kThreads}, kThreads * 4, [] { reverse(true); });
  for (int t = 0; t < kThreads; ++t)
    expect(global[t] == kThreads - 1 - t, "a reversal", "wrong result");
}

void test_source_line() {
  diagnostics().clear();
  declare();
  cuda_emulation::launch({1}, {kThreads}, kThreads * 4, [] { reverse(false); });
  expect(!diagnostics().empty() &&
             diagnostics()[0].text.find("test_emulator.cpp:") != std::string::npos,
         "source lines", "the finding does not name this file");
}

}  // namespace

int main() {
  expect(cuda_emulation::checked(), "the build", "no calls of the compiler arrive");
  for (const Case& c : kCases) run(c);
  test_results();
  test_reversal_result();
  test_source_line();
  printf("emulator: %zu kernels, %d failures\n", std::size(kCases) + 3, failures);
  return failures != 0;
}
