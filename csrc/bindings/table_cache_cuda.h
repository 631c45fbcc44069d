// The tables of tiles that were built last, on their devices: a graph of torch.compile hands over
// the same mask program again and again.
#pragma once

#include <optional>

#include "bindings/mask_program.h"

namespace attn {

// What a table was built for: a program with what its arrays hold, lengths, and where it lies. A
// table serves one stream alone, in whose order its memory is handed out again.
struct TableKey {
  std::vector<int64_t> numbers;  // lengths, device, code, and the types and sizes of the arrays
  std::vector<unsigned char> values;
  void* stream = nullptr;

  TableKey(const MaskProgram& program, int64_t Lq, int64_t Lk, int64_t device_index, void* stream);
  bool operator==(const TableKey&) const = default;
  int64_t bytes() const { return static_cast<int64_t>(values.size()); }
};

// The arrays of a table that was kept. One that a CUDA graph has captured stays for good, as the
// graph reads its memory whenever it is replayed.
std::optional<std::vector<Tensor>> find_table(const TableKey& key, bool capturing);

// The last 64 are kept, as long as they and their keys take less than 256 MB.
void keep_table(TableKey key, const std::vector<Tensor>& table);

}  // namespace attn
