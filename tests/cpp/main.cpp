// run [part of a name]...   runs the tests whose name contains one of the parts, or all.
// run --capabilities        prints the instruction sets of this machine.

#include <cstdio>
#include <cstring>

#include "check.h"
#include "cpu/cpu_info.h"

namespace {

bool wanted(const char* name, int argc, char** argv) {
  if (argc < 2) return true;
  for (int i = 1; i < argc; ++i) {
    if (std::strstr(name, argv[i]) != nullptr) return true;
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--capabilities") == 0) {
    for (const auto c : attn::available_cpu_capabilities())
      std::printf("%s\n", attn::capability_name(c));
    return 0;
  }
  int ran = 0, failed = 0;
  for (const check::Test& test : check::tests()) {
    if (!wanted(test.name, argc, argv)) continue;
    ++ran;
    try {
      test.run();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("%s failed: %s\n", test.name, error.what());
    }
  }
  std::printf("C++ tests on %s: %d ran, %d failed\n", attn::capability_name(attn::cpu_capability()),
              ran, failed);
  return failed == 0 && ran > 0 ? 0 : 1;
}
