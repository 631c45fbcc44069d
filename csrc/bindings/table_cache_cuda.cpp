#include "bindings/table_cache_cuda.h"

#include <list>
#include <mutex>

namespace attn {

namespace {

constexpr size_t kMost = 64;
constexpr int64_t kMostBytes = int64_t{256} << 20;

struct Entry {
  TableKey key;
  std::vector<Tensor> table;
  int64_t bytes;
  bool captured = false;
};

struct Cache {
  std::mutex mutex;
  std::list<Entry> entries;  // the last used comes first
};

// Never destroyed: its tensors must not outlive the CUDA driver.
Cache& cache() {
  static Cache* const all = new Cache;
  return *all;
}

int64_t item_size(MaskArray::Type type) {
  return type == MaskArray::Type::kBool ? 1 : type == MaskArray::Type::kInt32 ? 4 : 8;
}

void drop_oldest(std::list<Entry>& entries) {
  size_t count = 0;
  int64_t bytes = 0;
  entries.remove_if([&](const Entry& entry) {
    if (entry.captured) return false;
    bytes += entry.bytes;
    return ++count > kMost || bytes > kMostBytes;
  });
}

}  // namespace

TableKey::TableKey(const MaskProgram& program, int64_t Lq, int64_t Lk, int64_t device_index,
                   void* stream)
    : numbers{Lq, Lk, device_index, static_cast<int64_t>(program.code.size())}, stream(stream) {
  numbers.insert(numbers.end(), program.code.begin(), program.code.end());
  for (const MaskArray& array : program.arrays) {
    int64_t count = item_size(array.type);
    numbers.push_back(static_cast<int64_t>(array.type));
    numbers.push_back(static_cast<int64_t>(array.sizes.size()));
    for (const int64_t size : array.sizes) {
      numbers.push_back(size);
      count *= size;
    }
    const auto* data = static_cast<const unsigned char*>(array.data);
    if (count > 0) values.insert(values.end(), data, data + count);
  }
}

std::optional<std::vector<Tensor>> find_table(const TableKey& key, bool capturing) {
  const std::lock_guard lock(cache().mutex);
  std::list<Entry>& entries = cache().entries;
  for (auto entry = entries.begin(); entry != entries.end(); ++entry) {
    if (!(entry->key == key)) continue;
    entries.splice(entries.begin(), entries, entry);
    entry->captured |= capturing;
    return entry->table;
  }
  return std::nullopt;
}

void keep_table(TableKey key, const std::vector<Tensor>& table) {
  int64_t bytes = key.bytes();
  for (const Tensor& t : table) bytes += t.numel() * (t.scalar_type() == ScalarType::Long ? 8 : 4);
  const std::lock_guard lock(cache().mutex);
  cache().entries.push_front({std::move(key), table, bytes});
  drop_oldest(cache().entries);
}

}  // namespace attn
