#include "bindings/mask.h"

#include <algorithm>

namespace attn {

namespace {

const int64_t* checked_batch_values(const char* name, const OptionalTensor& t, int64_t B,
                                    const Tensor& query) {
  if (!t) return nullptr;
  check(on_same_device(*t, query) && t->scalar_type() == ScalarType::Long && t->dim() == 1 &&
            t->size(0) == B && t->is_contiguous(),
        name, ": expected contiguous int64 of shape (", B, ",) ", place_of(query), ", got ",
        describe(*t));
  return static_cast<const int64_t*>(t->data_ptr());
}

bool full_or_one(int64_t size, int64_t full) { return size == full || size == 1; }

void fill_band(const std::vector<int64_t>& band, Mask& mask) {
  if (band.empty()) return;
  check(band.size() == 6, "band: expected 0 or 6 integers, got ", band.size());
  check(band[2] > 0, "band: expected a dilation of at least 1, got ", band[2]);
  check(band[4] == 0 && band[5] == 0,
        "band: expected no global tokens, which this version has in block_table only");
  mask.lower = std::clamp(band[0], -kUnbounded, kUnbounded);
  mask.upper = std::clamp(band[1], -kUnbounded, kUnbounded);
  mask.dilation = band[2];
  mask.phase = modulo(band[3], band[2]);
}

void fill_bits(const Tensor& bits, int64_t B, int64_t Hq, const Tensor& query, Mask& mask) {
  const Sizes size = sizes_of(bits);
  const int64_t words = (mask.Lk + 63) / 64;
  check(on_same_device(bits, query) && bits.scalar_type() == ScalarType::Long && bits.dim() == 4 &&
            full_or_one(size[0], B) && full_or_one(size[1], Hq) && full_or_one(size[2], mask.Lq) &&
            size[3] == words,
        "mask_bits: expected int64 of shape (", B, " or 1, ", Hq, " or 1, ", mask.Lq, " or 1, ",
        words, ") ", place_of(query), ", got ", describe(bits));
  check(size[3] <= 1 || bits.stride(3) == 1, "mask_bits: expected the words of a row side by side");
  mask.bits = static_cast<const uint64_t*>(bits.data_ptr());
  mask.bits_stride_b = size[0] == 1 ? 0 : bits.stride(0);
  mask.bits_stride_h = size[1] == 1 ? 0 : bits.stride(1);
  mask.bits_stride_q = size[2] == 1 ? 0 : bits.stride(2);
}

}  // namespace

Mask checked_mask(const MaskArguments& arguments, int64_t B, int64_t Hq, int64_t Lq, int64_t Lk,
                  const Tensor& query) {
  Mask mask;
  mask.Lq = Lq;
  mask.Lk = Lk;
  fill_band(arguments.band, mask);
  check(!arguments.row_bounds, "row_bounds: expected None, this version has no kernels for it");
  mask.band_offset = checked_batch_values("band_offset", arguments.band_offset, B, query);
  mask.key_lengths = checked_batch_values("key_lengths", arguments.key_lengths, B, query);
  if (arguments.mask_bits) fill_bits(*arguments.mask_bits, B, Hq, query, mask);
  return mask;
}

void check_mask_values(const Mask& mask, int64_t B) {
  for (int64_t b = 0; b < B; ++b) {
    if (mask.band_offset)
      check(-kUnbounded / 2 <= mask.band_offset[b] && mask.band_offset[b] <= kUnbounded / 2,
            "band_offset: expected -2**61 to 2**61, got ", mask.band_offset[b]);
    if (mask.key_lengths)
      check(mask.key_lengths[b] >= 0 && mask.key_lengths[b] <= mask.Lk,
            "key_lengths: expected 0 to ", mask.Lk, ", got ", mask.key_lengths[b]);
  }
}

}  // namespace attn
