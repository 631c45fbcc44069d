#include "cuda/select_blocks.cuh"

namespace attn::cuda {

template void select_blocks<float>(SelectCall, Stream);

// Host code alone.
int64_t rows_at_once(const SelectCall& p) {
  constexpr int64_t kElements = int64_t{1} << 22;
  const int64_t of_blocks = p.compression ? p.heads() * p.blocks() : 0;
  const int64_t of_a_row = p.B * (p.score_heads() * p.columns + of_blocks);
  const int64_t rows = kElements / max64(1, of_a_row) / kTile * kTile;
  return min64(max64(rows, kTile), p.rows());
}

}  // namespace attn::cuda
