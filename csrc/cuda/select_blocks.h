// The selection of blocks on CUDA devices, as host code calls it. Kernels run on `stream`, in
// order, and don't wait for it; std::runtime_error if one does not start.
#pragma once

#include "core/select_params.h"

namespace attn::cuda {

using Stream = void*;  // cudaStream_t

// One call on a device: all pointers are the device's. `columns` is scored().
struct SelectCall : SelectParams {
  // What scores are products of: (B, score_heads(), rows(), D), the queries or their sums, and
  // (B, Hkv, columns, D), the compressed keys or the means of blocks.
  View scored_query, scored_key;
  int32_t* kept_keys = nullptr;  // [B, Hkv, columns]: keys of a block that count; with means alone
  // Workspace of the rows that are taken at a time, in the compute type.
  int64_t first_row = 0, row_count = 0;
  void* scores = nullptr;        // [B, score_heads(), row_count, columns]
  void* block_scores = nullptr;  // [B, heads(), row_count, blocks()]; without compression `scores`

  // Scores that become probabilities are those of single heads.
  ATTN_HD int64_t score_heads() const { return compression ? Hq : heads(); }
  ATTN_HD bool sums_queries() const { return !compression && (heads() != Hq || query_block > 1); }
  // The position of a row's first query.
  ATTN_HD int64_t position(int64_t row) const { return row * query_block + positions - Lq; }
  // Blocks that a row may select.
  ATTN_HD int64_t visible_blocks(int64_t row) const {
    const int64_t last = position(row);
    return !causal ? blocks() : last < 0 ? 0 : last / block + 1;
  }
  // Columns that a row's scores are made of, or its blocks are.
  ATTN_HD int64_t seen_columns(int64_t row) const {
    if (!compression) return visible_blocks(row);
    const int64_t seen = causal ? compression.seen_from(position(row)) : keys;
    return seen < keys ? seen : keys;
  }
};

// So many rows at a time, a function of the sizes: their scores stay in a cache of 16 MB.
int64_t rows_at_once(const SelectCall& call);

// T: what is computed in, float or double.
template <class T>
void select_blocks(SelectCall call, Stream stream);

}  // namespace attn::cuda
