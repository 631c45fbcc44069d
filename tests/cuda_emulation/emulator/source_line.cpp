#include <dlfcn.h>

#include <cstdio>

#include "block.h"

namespace cuda_emulation {

std::string source_line(const void* pc) {
  Dl_info info;
  if (!dladdr(pc, &info) || !info.dli_fname) return "an unknown place";
  const auto offset = static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase) - 1;
  char command[1024];
  snprintf(command, sizeof command, "addr2line -i -s -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
           static_cast<size_t>(offset));
  FILE* lines = popen(command, "r");
  if (!lines) return "an unknown place";
  std::string place;
  char line[512];
  for (int i = 0; i < 3 && fgets(line, sizeof line, lines); ++i) {
    line[strcspn(line, " \n")] = 0;
    place += (i ? " < " : "") + std::string(line);
  }
  pclose(lines);
  return place;
}

}  // namespace cuda_emulation
