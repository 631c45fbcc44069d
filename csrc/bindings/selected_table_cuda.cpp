#include "bindings/selected_table_cuda.h"

#include "bindings/device_tensor_cuda.h"
#include "cpu/mask_expression.h"
#include "cuda/selected_table.h"

namespace attn {

namespace {

constexpr double kMostBytes = 4.0 * (1 << 30);

bool is_size(int64_t n) { return 0 < n && n < int64_t{1} << 31; }

// The program [kSelected, 0, repeat, query block, key block] with its array.
bool is_selected(const std::vector<Tensor>& block_table, const Tensor& beside) {
  if (block_table.size() != 2) return false;
  const Tensor &code = block_table[0], &indices = block_table[1];
  if (!code.is_cpu() || code.scalar_type() != ScalarType::Long || code.dim() != 1 ||
      code.size(0) != 5 || !code.is_contiguous())
    return false;
  const int64_t* number = static_cast<const int64_t*>(code.data_ptr());
  return number[0] == kSelected && number[1] == 0 && is_size(number[2]) && is_size(number[3]) &&
         is_size(number[4]) && on_same_device(indices, beside) && indices.is_contiguous() &&
         indices.scalar_type() == ScalarType::Int && indices.dim() == 4;
}

cuda::SelectedTable read_call(const std::vector<Tensor>& block_table, int64_t Lq, int64_t Lk) {
  const int64_t* number = static_cast<const int64_t*>(block_table[0].data_ptr());
  const Tensor& indices = block_table[1];
  cuda::SelectedTable p;
  p.lists = indices.size(0) * indices.size(1), p.per_row = indices.size(3);
  p.repeat = number[2], p.query_block = number[3], p.key_block = number[4];
  p.Lq = Lq, p.Lk = Lk;
  p.indices = static_cast<const int32_t*>(indices.data_ptr());
  return p;
}

double bytes_of(const cuda::SelectedTable& p) {
  const double pair = p.cuts_tiles() ? 8 * (kTableTile + 1) : 8;
  const double tiles = static_cast<double>(p.query_tiles()) * static_cast<double>(p.key_tiles());
  return static_cast<double>(p.lists) *
         (pair * tiles + 2 * sizeof(TableEntry) * static_cast<double>(p.capacity()));
}

// What the kernels fill.
std::vector<Tensor> make_arrays(cuda::SelectedTable& p, const Tensor& indices) {
  const int64_t B = indices.size(0), H = indices.size(1) * p.repeat, tiles = p.lists * p.tiles();
  const int64_t maps = p.cuts_tiles() ? tiles : (tiles + kTableTile - 1) / kTableTile;
  const std::vector<int64_t> entries{p.lists * p.capacity(), 2};
  const std::vector<Tensor> arrays{empty_on(indices, {B, H, p.query_tiles() + 1}, ScalarType::Long),
                                   empty_on(indices, entries, ScalarType::Int),
                                   empty_on(indices, {B, H, p.key_tiles() + 1}, ScalarType::Long),
                                   empty_on(indices, entries, ScalarType::Int),
                                   empty_on(indices, {maps, kTableTile}, ScalarType::Long)};
  p.row_start = static_cast<int64_t*>(arrays[0].data_ptr());
  p.row_entries = static_cast<TableEntry*>(arrays[1].data_ptr());
  p.column_start = static_cast<int64_t*>(arrays[2].data_ptr());
  p.column_entries = static_cast<TableEntry*>(arrays[3].data_ptr());
  p.maps = p.words = static_cast<uint64_t*>(arrays[4].data_ptr());
  return arrays;
}

}  // namespace

std::optional<std::vector<Tensor>> selected_table(const std::vector<Tensor>& block_table,
                                                  int64_t Lq, int64_t Lk, const Tensor& beside) {
  if (Lq < 0 || Lk < 0 || !is_selected(block_table, beside)) return std::nullopt;
  const Tensor& indices = block_table[1];
  cuda::SelectedTable p = read_call(block_table, Lq, Lk);
  if (indices.size(2) != p.query_blocks() || bytes_of(p) > kMostBytes) return std::nullopt;
  const DeviceScope device(indices);
  std::vector<Tensor> arrays = make_arrays(p, indices);
  const Tensor counts =
      empty_on(indices, {p.lists, p.query_tiles() + p.key_tiles()}, ScalarType::Int);
  p.counts = static_cast<int32_t*>(counts.data_ptr());
  std::optional<Tensor> words;
  if (p.cuts_tiles()) {
    words = empty_on(indices, {p.lists, p.tiles()}, ScalarType::Long);
    p.words = static_cast<uint64_t*>(words->data_ptr());
  }
  make_selected_table(p, device.stream());
  return arrays;
}

}  // namespace attn
