// A C++ program on LibTorch, without Python: loads the operator library and calls it through the
// dispatcher.
//   main path/to/libattention_ext.so
// Prints one line per check and returns the number of those that failed.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace {

int failures = 0;

void check(bool holds, const char* what) {
  std::printf("%s: %s\n", holds ? "ok" : "FAILED", what);
  failures += holds ? 0 : 1;
}

// attention_ext::attention without options but a band: lower <= j - i <= upper.
std::vector<at::Tensor> attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  std::vector<int64_t> band = {}) {
  auto op = c10::Dispatcher::singleton().findSchemaOrThrow("attention_ext::attention", "");
  const auto none = c10::IValue();
  torch::jit::Stack stack{q,
                          k,
                          v,
                          std::move(band),
                          none,
                          none,
                          none,
                          none,
                          std::vector<at::Tensor>(),
                          none,
                          none,
                          none,
                          none,
                          0.0,
                          0.0,
                          none};
  op.callBoxed(&stack);
  return {stack.at(0).toTensor(), stack.at(1).toTensor()};
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 100;
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::printf("FAILED: %s\n", dlerror());
    return 101;
  }
  at::manual_seed(0);
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const auto q = at::randn({2, 4, 33, 24}, options), k = at::randn({2, 2, 50, 24}, options),
             v = at::randn({2, 2, 50, 16}, options);
  const auto scores = at::matmul(q, k.repeat_interleave(2, 1).transpose(2, 3)) / std::sqrt(24.0);
  const auto values = v.repeat_interleave(2, 1);

  const auto dense = attention(q, k, v);
  check(largest_difference(dense[0], at::matmul(at::softmax(scores, -1), values)) < 1e-12,
        "dense output");
  check(largest_difference(dense[1], at::logsumexp(scores, {3})) < 1e-12, "dense lse");

  // Causal, the last query at the last key.
  const auto causal = attention(q, k, v, {-(int64_t{1} << 62), 50 - 33, 1, 0, 0, 0});
  const auto hidden = at::ones({33, 50}, at::kBool).triu(50 - 33 + 1);
  const auto masked = scores.masked_fill(hidden, -INFINITY);
  check(largest_difference(causal[0], at::matmul(at::softmax(masked, -1), values)) < 1e-12,
        "causal output");

  // Autograd is Python's part: without it, a gradient that is asked for is an error and not a
  // silent zero.
  auto leaf = q.clone().set_requires_grad(true);
  const std::string refusal = error_of([&] { attention(leaf, k, v); });
  check(refusal.find("requires a derivative") != std::string::npos,
        "an input that requires grad raises");
  {
    at::NoGradGuard no_grad;
    check(at::equal(attention(leaf, k, v)[0], dense[0]), "the same input without grad mode");
  }
  check(!error_of([&] { attention(q, k.narrow(3, 0, 8), v); }).empty(),
        "a wrong head dimension raises");
  return failures;
}
