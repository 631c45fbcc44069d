// attention_ext::_pack_mask_bits, on the CPU.
#include <algorithm>

#include "bindings/tensor.h"

namespace attn {

namespace {

struct PackParams {
  const uint8_t* keep;
  uint64_t* words;
  int64_t rows, Lk, words_per_row, stride;
  std::vector<int64_t> sizes, strides;  // of the dimensions in front of the last
};

void pack_row(const PackParams& p, int64_t row) {
  int64_t offset = 0, rest = row;
  for (size_t d = p.sizes.size(); d-- > 0; rest /= p.sizes[d])
    offset += rest % p.sizes[d] * p.strides[d];
  const uint8_t* keep = p.keep + offset;
  for (int64_t w = 0; w < p.words_per_row; ++w) {
    uint64_t word = 0;
    const int64_t end = std::min<int64_t>(64, p.Lk - w * 64);
    for (int64_t t = 0; t < end; ++t) word |= uint64_t{keep[(w * 64 + t) * p.stride] != 0} << t;
    p.words[row * p.words_per_row + w] = word;
  }
}

// keep (..., Lk) bool -> (..., ceil(Lk / 64)) int64: bit j % 64 of word j / 64 is key j.
Tensor pack_mask_bits(const Tensor& keep) {
  check(keep.is_cpu() && keep.scalar_type() == ScalarType::Bool && keep.dim() >= 1,
        "keep: expected a bool tensor of at least one dimension on the CPU, got ", describe(keep));
  const auto sizes = keep.sizes(), strides = keep.strides();
  PackParams p;
  const size_t last = sizes.size() - 1;
  p.rows = 1;
  p.Lk = sizes[last];
  p.stride = strides[last];
  p.words_per_row = (p.Lk + 63) / 64;
  std::vector<int64_t> packed;
  for (size_t d = 0; d < last; ++d) {
    p.sizes.push_back(sizes[d]);
    p.strides.push_back(strides[d]);
    packed.push_back(sizes[d]);
    p.rows *= sizes[d];
  }
  packed.push_back(p.words_per_row);
  Tensor words = empty(packed, ScalarType::Long);
  p.keep = static_cast<const uint8_t*>(keep.data_ptr());
  p.words = static_cast<uint64_t*>(words.data_ptr());
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, p.Lk));
  torch::stable::parallel_for(0, p.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) pack_row(p, row);
  });
  return words;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(attention_ext, m) { m.def("_pack_mask_bits(Tensor keep) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(attention_ext, CPU, m) {
  m.impl("_pack_mask_bits", TORCH_BOX(&pack_mask_bits));
}

}  // namespace attn
