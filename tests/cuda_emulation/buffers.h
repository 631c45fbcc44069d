// What a kernel may touch, put together from views and pointers.
#pragma once

#include <cuda_emulation.h>

#include "core/params.h"

namespace cuda_emulation {

struct Buffers {
  std::vector<Buffer> list;

  void add(const char* name, const void* data, int64_t bytes, bool writable) {
    if (data && bytes > 0) list.push_back({data, static_cast<size_t>(bytes), name, writable});
  }

  // From the first to the last element; strides are never negative in torch.
  void add(const char* name, const attn::View& view, const int64_t (&sizes)[4], bool writable) {
    int64_t last = 0;
    for (int d = 0; d < 4; ++d) {
      if (sizes[d] == 0) return;
      last += (sizes[d] - 1) * view.stride[d];
    }
    add(name, view.data, (last + 1) * attn::size_of(view.dtype), writable);
  }
};

}  // namespace cuda_emulation
