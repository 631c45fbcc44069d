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

void copy_to_shared(bool with_group, bool with_wait) {
  const int t = threadIdx.x;
  if (t < kThreads / 4) {
    cuda_emulation::copy_async(shared() + 16 * t, inputs + 4 * t, 16, 12);
    if (with_group) cuda_emulation::end_copy_group();
    if (with_wait) cuda_emulation::wait_for_copies(0);
  }
  __syncthreads();
  if (with_group) global[t] = shared_ints()[t];
  if (with_group) cuda_emulation::wait_for_copies(0);
}

// 8 rows of each matrix, `pitch` bytes apart.
void load_rows(int pitch, bool with_barrier = true) {
  for (int at = threadIdx.x; at < 32 * pitch / 4; at += blockDim.x) shared_ints()[at] = at;
  if (with_barrier) __syncwarp();
  uint32_t result[4];
  cuda_emulation::load_matrices(result, shared() + threadIdx.x * pitch, false);
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
    {"a copy that is waited for", nullptr, [] { copy_to_shared(true, true); }},
    {"a copy in flight", "race", [] { copy_to_shared(true, false); }},
    {"a copy without a group", "async copy", [] { copy_to_shared(false, false); }},
    {"a copy to a misaligned place", "misaligned",
     [] { cuda_emulation::copy_async(shared() + 4 * threadIdx.x, inputs, 16, 16); }},
    {"matrices side by side", nullptr, [] { load_rows(16); }, 32 * 16, 1, 32},
    {"matrices without order", "race", [] { load_rows(16, false); }, 32 * 16, 1, 32},
    {"rows in the same banks", "bank conflict", [] { load_rows(128); }, 32 * 128, 1, 32},
    {"matrices of half a warp", "divergence",
     [] {
       if (threadIdx.x < 16) load_rows(16);
     },
     32 * 16, 1, 32},
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

// Numbers as 16-bit elements: those of the tests are whole and small.
float number(uint32_t element) { return static_cast<float>(element & 0xffff); }
int left_element(int row, int k) { return (3 * row + 5 * k) % 11; }
int right_element(int k, int column) { return (7 * k + 2 * column) % 13; }

// Operands as load_matrices gives them, of a left one by rows and a right one by rows, transposed.
void test_product() {
  declare();
  cuda_emulation::options().seed = 1;
  diagnostics().clear();
  cuda_emulation::launch({1}, {32}, 2 * 32 * 16, [] {
    auto* elements = reinterpret_cast<uint16_t*>(shared());
    const int t = threadIdx.x;
    const int row = t % 16, half = t / 16;  // matrices: rows 0, rows 8, then the columns from 8 on
    for (int e = 0; e < 8; ++e) {
      elements[t * 8 + e] = static_cast<uint16_t>(left_element(row, 8 * half + e));
      elements[256 + t * 8 + e] = static_cast<uint16_t>(right_element(row, 8 * half + e));
    }
    __syncwarp();
    uint32_t a[4], b[4];
    float sums[2][4] = {{1, 1, 1, 1}, {1, 1, 1, 1}};
    cuda_emulation::load_matrices(a, elements + t * 8, false);
    cuda_emulation::load_matrices(b, elements + 256 + t * 8, true);
    cuda_emulation::multiply_add(sums[0], a, {b[0], b[1]}, number);
    cuda_emulation::multiply_add(sums[1], a, {b[2], b[3]}, number);
    bool right = true;
    for (int n = 0; n < 2; ++n)
      for (int e = 0; e < 4; ++e) {
        float sum = 1;
        for (int k = 0; k < 16; ++k)
          sum += static_cast<float>(left_element(t / 4 + 8 * (e / 2), k) *
                                    right_element(k, 8 * n + t % 4 * 2 + e % 2));
        right &= sums[n][e] == sum;
      }
    global[t] = right;
  });
  for (int t = 0; t < 32; ++t) expect(global[t] == 1, "a product", "wrong result");
  expect(diagnostics().empty(), "a product", "something was found");
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
  test_product();
  test_source_line();
  printf("emulator: %zu kernels, %d failures\n", std::size(kCases) + 4, failures);
  return failures != 0;
}
