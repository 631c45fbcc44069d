// The leaves of mask expressions. Each throws std::invalid_argument for arguments that make none.
#pragma once

#include "cpu/mask_expression.h"

namespace attn {

// lower <= j - p <= upper, and j - p is phase modulo dilation; p = i + Lk - Lq if aligned at the
// last key, else i.
MaskNode make_band(int64_t lower, int64_t upper, int64_t dilation, int64_t phase, bool at_end);

MaskNode make_lengths(const MaskArray& lengths);  // int64 (B,)

// int64 (B|1, H|1, Lq|1, ceil(keys / 64)), keys being Lk, or 1 for a map that all keys share
MaskNode make_bits(const MaskArray& words, int64_t keys);

// Equal ids, not negative: ids int64 (B|1, Lk) of positions, of keys alone where query_ids int64
// (B|1, Lq) is given.
MaskNode make_documents(const MaskArray& ids, const MaskArray* query_ids, bool at_end);

// p >= 0, and p or j is one of the first `tokens` positions or one of `positions`, int64 (n,).
MaskNode make_global(int64_t tokens, const MaskArray* positions, bool at_end);

// map bool (B|1, H|1, nq, nk): query i lies in block i / query_block, key j in j / key_block.
MaskNode make_blocks(const MaskArray& map, int64_t query_block, int64_t key_block);

struct GridDimension {
  int64_t size = 1, window = 1, dilation = 1;
  bool causal = false;
};
MaskNode make_neighborhood(const std::vector<GridDimension>& grid);

// Query i sees the blocks of keys that indices int32 (B|1, H|1, nq, n) names for block i /
// query_block; one below 0 names none. Each head of the indices is shared by `repeat` heads.
MaskNode make_selected(const MaskArray& indices, int64_t repeat, int64_t query_block,
                       int64_t key_block);

// Key j stands for the positions j * stride .. j * stride + length - 1 of `positions`, and is seen
// from the last of them on; the last query stands at the last position.
MaskNode make_compressed(int64_t length, int64_t stride, int64_t positions);

// row_start, row_entries, column_start, column_entries, maps of a BlockTable.
MaskNode make_table(const MaskArray* const (&parts)[5], int64_t Lq, int64_t Lk);

// Checks those arrays and points into them: nothing in a checked table reaches out of it.
BlockTable checked_table(const MaskArray* const (&parts)[5], int64_t Lq, int64_t Lk);

// `part` inside each of the sequences that cu_seqlens, int64 (n + 1,), cut queries and keys into,
// with the sequence as its row of the batch.
MaskNode make_packed(const MaskArray& cu_seqlens_q, const MaskArray& cu_seqlens_k, MaskNode part);

}  // namespace attn
