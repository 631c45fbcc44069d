// Lowers a mask expression to a table of tiles, a row of tiles at a time: memory follows the tiles
// that hold an allowed pair.
#pragma once

#include <vector>

#include "cpu/mask_expression.h"

namespace attn {

struct BlockTableArrays {
  int64_t batches = 1, heads = 1, query_tiles = 0, key_tiles = 0;
  std::vector<int64_t> row_start, column_start;
  std::vector<TableEntry> row_entries, column_entries;
  std::vector<uint64_t> maps;

  BlockTable view() const;
};

// What BlockTable::sparse is to be: of the queries that have an entry, less than 3 in 5 see a key.
bool has_sparse_tiles(const BlockTable& table);

// Throws std::invalid_argument where the expression does not fit the lengths.
BlockTableArrays build_block_table(const MaskExpression& mask, int64_t Lq, int64_t Lk);

// keep (Lq, Lk): 1 where the pair is allowed, 0 elsewhere.
void dense_block_table(const BlockTable& table, int64_t b, int64_t h, int64_t Lq, int64_t Lk,
                       uint8_t* keep);

}  // namespace attn
