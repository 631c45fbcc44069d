#include "bindings/block_table_cuda.h"

#include "bindings/device_tensor_cuda.h"
#include "bindings/selected_table_cuda.h"
#include "bindings/table_cache_cuda.h"

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

// The arrays of the table that block_table holds, null where it holds a program yet to be built.
const Tensor* built_arrays(const std::vector<Tensor>& block_table, int64_t Lq, int64_t Lk) {
  const Tensor& code = block_table[0];
  if (!code.is_cpu() || block_table.size() != 6) return nullptr;
  MaskProgram program = read_program({code});
  program.arrays.resize(5);
  return program.is_table(Lq, Lk) ? &block_table[1] : nullptr;
}

BlockTable table_of(const Tensor* arrays, int64_t Lq, int64_t Lk, const Tensor& beside) {
  BlockTable table;
  table.query_tiles = (Lq + kTableTile - 1) / kTableTile;
  table.key_tiles = (Lk + kTableTile - 1) / kTableTile;
  const Tensor &row_start = arrays[0], &row_entries = arrays[1];
  const Tensor &column_start = arrays[2], &column_entries = arrays[3], &maps = arrays[4];
  check_lists(row_start, row_entries, table.query_tiles, beside);
  check_lists(column_start, column_entries, table.key_tiles, beside);
  check_array(maps, ScalarType::Long, 2, beside);
  table.batches = row_start.size(0), table.heads = row_start.size(1);
  check(column_start.size(0) == table.batches && column_start.size(1) == table.heads &&
            column_entries.size(0) == row_entries.size(0) && maps.size(1) == kTableTile,
        "block_table: expected arrays that fit each other, got ", describe(row_start), ", ",
        describe(column_start), " and maps ", describe(maps));
  table.row_start = data_of<int64_t>(row_start);
  table.column_start = data_of<int64_t>(column_start);
  table.row_entries = data_of<TableEntry>(row_entries);
  table.column_entries = data_of<TableEntry>(column_entries);
  table.maps = data_of<uint64_t>(maps);
  table.entry_count = row_entries.size(0), table.map_count = maps.size(0);
  return table;
}

void check_not_capturing(const DeviceScope& device) {
  check(!device.is_capturing(),
        "block_table: a mask's table is built on the CPU, which a CUDA graph cannot capture; make "
        "the same call before the capture, or, where the mask holds tensors, use "
        "mask.tiles(Lq, Lk), which builds it once");
}

// A block_table on the CPU, which waits for what lies on the device.
std::vector<Tensor> copy_to_host(const std::vector<Tensor>& block_table,
                                 const DeviceScope& device) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  std::vector<Tensor> on_host;
  for (const Tensor& t : block_table) {
    if (!t.is_cpu()) check_not_capturing(device);
    on_host.push_back(t.is_cpu() ? t : torch::stable::to(t, cpu));
  }
  return on_host;
}

std::vector<Tensor> build_on_host(const MaskProgram& program, int64_t Lq, int64_t Lk,
                                  const Tensor& beside) {
  std::vector<Tensor> table;
  for (const Tensor& t : table_tensors(program.build(Lq, Lk)))
    table.push_back(torch::stable::to(t, beside.device()));
  return table;
}

// The table of a program, on the device of `beside`: made there, or one that the CPU built, now or
// before.
std::vector<Tensor> table_beside(const Tensor& beside, const std::vector<Tensor>& block_table,
                                 int64_t Lq, int64_t Lk) {
  if (auto made = selected_table(block_table, Lq, Lk, beside)) return *made;
  const DeviceScope device(beside);
  const std::vector<Tensor> on_host = copy_to_host(block_table, device);
  const MaskProgram program = read_program(on_host);
  TableKey key(program, Lq, Lk, beside.get_device_index(), device.stream());
  if (auto kept = find_table(key, device.is_capturing())) return *kept;
  check_not_capturing(device);
  std::vector<Tensor> table = build_on_host(program, Lq, Lk, beside);
  keep_table(std::move(key), table);
  return table;
}

}  // namespace

BlockTable device_table(const std::vector<Tensor>& block_table, int64_t B, int64_t Hq, int64_t Lq,
                        int64_t Lk, const Tensor& beside, std::vector<Tensor>& built) {
  const Tensor* arrays = built_arrays(block_table, Lq, Lk);
  if (!arrays) {
    built = table_beside(beside, block_table, Lq, Lk);
    arrays = built.data();
  }
  const BlockTable table = table_of(arrays, Lq, Lk, beside);
  check((table.batches == B || table.batches == 1) && (table.heads == Hq || table.heads == 1),
        "mask: expected batch size ", B, " or 1 and ", Hq, " heads or 1, got ", table.batches,
        " and ", table.heads);
  return table;
}

std::vector<Tensor> cuda::build_block_table(const std::vector<Tensor>& block_table, int64_t Lq,
                                            int64_t Lk) {
  check(!block_table.empty(), "block_table: expected a mask program, got no tensors");
  check(Lq >= 0 && Lk >= 0, "Lq, Lk: expected lengths of at least 0, got ", Lq, " and ", Lk);
  const Tensor& beside = block_table.back();
  if (auto made = selected_table(block_table, Lq, Lk, beside)) return *made;
  const std::vector<Tensor> on_host = copy_to_host(block_table, DeviceScope(beside));
  return build_on_host(read_program(on_host), Lq, Lk, beside);
}

}  // namespace attn
