#include "bindings/block_table_cuda.h"

#include <algorithm>

#include "bindings/device_tensor_cuda.h"
#include "cpu/mask_expression.h"

namespace attn {

namespace {

void check_array(const Tensor& t, ScalarType type, int64_t dim, const Tensor& beside) {
  check(on_same_device(t, beside) && t.is_contiguous() && t.scalar_type() == type && t.dim() == dim,
        "block_table: expected the arrays of a table, contiguous and on query's device, got ",
        describe(t));
}

// row_start or column_start, with its entries, of `tiles` lists per batch row and head.
void check_lists(const Tensor& start, const Tensor& entries, int64_t tiles, const Tensor& beside) {
  check_array(start, ScalarType::Long, 3, beside);
  check_array(entries, ScalarType::Int, 2, beside);
  check(start.size(2) == tiles + 1 && entries.size(1) == 2, "block_table: expected lists of ",
        tiles, " tiles and entries of two numbers, got ", describe(start), " and ",
        describe(entries));
}

template <class T>
const T* data_of(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}

}  // namespace

BlockTable device_table(const std::vector<Tensor>& block_table, int64_t B, int64_t Hq, int64_t Lq,
                        int64_t Lk, const Tensor& beside) {
  const Tensor& code = block_table[0];
  const std::vector<int64_t> expected{kTableProgram, 0, 1, 2, 3, 4, Lq, Lk};
  const auto size = static_cast<int64_t>(expected.size());
  check(code.is_cpu() && code.is_contiguous() && code.scalar_type() == ScalarType::Long &&
            code.dim() == 1 && code.size(0) == size && block_table.size() == 6 &&
            std::equal(expected.begin(), expected.end(), data_of<int64_t>(code)),
        "block_table: expected a table built for ", Lq, " queries and ", Lk,
        " keys, as CUDA kernels can't build one: outside of graphs and transforms, masks do it");
  BlockTable table;
  table.query_tiles = (Lq + kTableTile - 1) / kTableTile;
  table.key_tiles = (Lk + kTableTile - 1) / kTableTile;
  const Tensor &row_start = block_table[1], &row_entries = block_table[2];
  const Tensor &column_start = block_table[3], &column_entries = block_table[4];
  const Tensor& maps = block_table[5];
  check_lists(row_start, row_entries, table.query_tiles, beside);
  check_lists(column_start, column_entries, table.key_tiles, beside);
  check_array(maps, ScalarType::Long, 2, beside);
  table.batches = row_start.size(0), table.heads = row_start.size(1);
  check((table.batches == B || table.batches == 1) && (table.heads == Hq || table.heads == 1) &&
            column_start.size(0) == table.batches && column_start.size(1) == table.heads &&
            column_entries.size(0) == row_entries.size(0) && maps.size(1) == kTableTile,
        "block_table: expected batch size ", B, " or 1 and ", Hq, " heads or 1, got ",
        describe(row_start), ", ", describe(column_start), " and maps ", describe(maps));
  table.row_start = data_of<int64_t>(row_start);
  table.column_start = data_of<int64_t>(column_start);
  table.row_entries = data_of<TableEntry>(row_entries);
  table.column_entries = data_of<TableEntry>(column_entries);
  table.maps = data_of<uint64_t>(maps);
  table.entry_count = row_entries.size(0), table.map_count = maps.size(0);
  return table;
}

}  // namespace attn
