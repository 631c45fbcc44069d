// What the kernels that select blocks of keys are told.
#pragma once

#include "core/params.h"

namespace attn {

// Compressed keys: key j stands for the positions j * stride .. j * stride + length - 1. A block's
// score is then the sum of the attention probabilities of its keys, each counted once for every
// stride of positions it shares with the block.
struct Compression {
  int64_t length = 0, stride = 0;  // length 0: keys are not compressed, blocks have their mean

  ATTN_HD explicit operator bool() const { return length > 0; }
  // The number of keys whose positions end at `position` or before.
  ATTN_HD int64_t seen_from(int64_t position) const {
    return position < length - 1 ? 0 : (position - length + 1) / stride + 1;
  }
};

struct SelectParams {
  // Keys of the tensor, and positions they stand for: the same unless compressed.
  int64_t B = 0, Hq = 0, Hkv = 0, Lq = 0, keys = 0, positions = 0, D = 0;
  View query, key;                // (B, Hq, Lq, D), (B, Hkv, keys, D)
  const uint8_t* keep = nullptr;  // (B, keys), null: all count
  int64_t block = 1, query_block = 1;
  int64_t top_k = 1, initial = 0, local = 1;  // the last two are part of the first
  bool causal = true, share_heads = false;
  double scale = 1;  // of the compressed scores
  Compression compression;
  int32_t* indices = nullptr;  // [B, heads(), rows(), top_k]

  // Workspace in the compute type (float or double): the scored keys, columns first.
  void* scored_keys = nullptr;     // [B, Hkv, D, columns]
  uint8_t* scored_keep = nullptr;  // [B, Hkv, columns]: some key of the column counts
  int64_t columns = 0;             // a multiple of every register's lanes

  ATTN_HD int64_t group() const { return Hq / Hkv; }
  ATTN_HD int64_t heads() const { return share_heads ? Hkv : Hq; }
  ATTN_HD int64_t rows() const { return (Lq + query_block - 1) / query_block; }
  ATTN_HD int64_t blocks() const { return (positions + block - 1) / block; }
  // What scores are made with: compressed keys, or the mean of each block.
  ATTN_HD int64_t scored() const { return compression ? keys : blocks(); }
};

}  // namespace attn
