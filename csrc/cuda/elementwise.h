// Small operators beside the attention kernels, one thread per result; on `stream`, not waited for.
#pragma once

#include "core/philox.h"

namespace attn::cuda {

using Stream = void*;  // cudaStream_t

// words[n] of contiguous rows of Lk booleans: bit j % 64 of a row's word j / 64 is key j.
struct PackCall {
  const bool* keep;
  uint64_t* words;
  int64_t Lk, words_in_all;
};
void pack_mask_bits(const PackCall& call, Stream stream);

// keep (B, H, Lq, Lk): which weights the draw keeps. The seed is read from the device.
struct KeepCall {
  Dropout dropout;
  const int64_t* seed;
  bool* keep;
  int64_t B, H, Lq, Lk;
};
void dropout_keep(const KeepCall& call, Stream stream);

}  // namespace attn::cuda
