#include "bindings/mask.h"

#include "bindings/threads.h"

namespace attn {

namespace {

const int64_t* checked_batch_values(const char* name, const OptionalTensor& t, int64_t B) {
  if (!t) return nullptr;
  check(t->is_cpu() && t->scalar_type() == ScalarType::Long && t->dim() == 1 && t->size(0) == B &&
            t->is_contiguous(),
        name, ": expected contiguous int64 of shape (", B, ",) on the CPU, got ", describe(*t));
  return static_cast<const int64_t*>(t->data_ptr());
}

bool full_or_one(int64_t size, int64_t full) { return size == full || size == 1; }

}  // namespace

Mask checked_mask(const MaskArguments& arguments, int64_t B, int64_t Hq, int64_t Lq, int64_t Lk,
                  BlockTableArrays& built) {
  Mask mask;
  mask.Lq = Lq;
  mask.Lk = Lk;
  const auto& band = arguments.band;
  if (!band.empty()) {
    check(band.size() == 6, "band: expected 0 or 6 integers, got ", band.size());
    check(band[2] > 0, "band: expected a dilation of at least 1, got ", band[2]);
    check(band[4] == 0 && band[5] == 0,
          "band: expected no global tokens, which this version has in block_table only");
    mask.lower = std::clamp(band[0], -kUnbounded, kUnbounded);
    mask.upper = std::clamp(band[1], -kUnbounded, kUnbounded);
    mask.dilation = band[2];
    mask.phase = modulo(band[3], band[2]);
  }
  check(!arguments.row_bounds, "row_bounds: expected None, this version has no kernels for it");
  if (!arguments.block_table.empty())
    mask.table = lowered_table(arguments.block_table, B, Hq, Lq, Lk, built);
  mask.band_offset = checked_batch_values("band_offset", arguments.band_offset, B);
  mask.key_lengths = checked_batch_values("key_lengths", arguments.key_lengths, B);
  for (int64_t b = 0; b < B; ++b) {
    if (mask.band_offset)
      check(-kUnbounded / 2 <= mask.band_offset[b] && mask.band_offset[b] <= kUnbounded / 2,
            "band_offset: expected -2**61 to 2**61, got ", mask.band_offset[b]);
    if (mask.key_lengths)
      check(mask.key_lengths[b] >= 0 && mask.key_lengths[b] <= Lk, "key_lengths: expected 0 to ",
            Lk, ", got ", mask.key_lengths[b]);
  }
  if (const OptionalTensor& bits = arguments.mask_bits) {
    const Sizes size = sizes_of(*bits);
    check(bits->is_cpu() && bits->scalar_type() == ScalarType::Long && bits->dim() == 4 &&
              full_or_one(size[0], B) && full_or_one(size[1], Hq) && full_or_one(size[2], Lq) &&
              size[3] == (Lk + 63) / 64,
          "mask_bits: expected int64 of shape (", B, " or 1, ", Hq, " or 1, ", Lq, " or 1, ",
          (Lk + 63) / 64, ") on the CPU, got ", describe(*bits));
    check(size[3] <= 1 || bits->stride(3) == 1,
          "mask_bits: expected the words of a row side by side");
    mask.bits = static_cast<const uint64_t*>(bits->data_ptr());
    mask.bits_stride_b = size[0] == 1 ? 0 : bits->stride(0);
    mask.bits_stride_h = size[1] == 1 ? 0 : bits->stride(1);
    mask.bits_stride_q = size[2] == 1 ? 0 : bits->stride(2);
  }
  return mask;
}

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
