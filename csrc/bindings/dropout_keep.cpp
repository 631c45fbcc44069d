// attention_ext::_dropout_keep, on the CPU.
#include <algorithm>

#include "bindings/dropout.h"

namespace attn {

namespace {

// Which weights the draw keeps: bool (B, H, Lq, Lk).
Tensor dropout_keep(const Tensor& dropout_seed, double dropout_p, int64_t B, int64_t H, int64_t Lq,
                    int64_t Lk) {
  check(B >= 0 && H >= 0 && Lq >= 0 && Lk >= 0, "sizes: expected none below 0, got ", B, ", ", H,
        ", ", Lq, ", ", Lk);
  Dropout dropout = checked_dropout(dropout_p);
  dropout.seed = static_cast<uint64_t>(*checked_seed(dropout_seed, dropout_seed));
  Tensor keep = empty({B, H, Lq, Lk}, ScalarType::Bool);
  uint8_t* out = static_cast<uint8_t*>(keep.data_ptr());
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, Lk));
  torch::stable::parallel_for(0, B * H * Lq, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / (H * Lq), h = row / Lq % H, q = row % Lq;
      for (int64_t k = 0; k < Lk; k += 4) {
        const uint32_t bits = dropout.keep4(b, h, q, k / 4);
        for (int64_t t = 0; t < std::min<int64_t>(4, Lk - k); ++t)
          out[row * Lk + k + t] = bits >> t & 1;
      }
    }
  });
  return keep;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(attention_ext, m) {
  m.def(
      "_dropout_keep(Tensor dropout_seed, float dropout_p, SymInt B, SymInt H, SymInt Lq, SymInt "
      "Lk) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(attention_ext, CPU, m) {
  m.impl("_dropout_keep", TORCH_BOX(&dropout_keep));
}

}  // namespace attn
