// Host code alone: how a backward call is cut, a function of its shapes.
#include "cuda/attention_backward_terms.cuh"

namespace attn::cuda {

void plan_attention_backward(AttentionCall& p) {
  p.plan.row_blocks = p.plan.chunks = tiles_over(p.Lq, kTile);
  p.plan.bias_slots = 1;
  if (!p.dbias) return;
  // Enough blocks for a large device, in a buffer that stays small.
  constexpr int64_t kBlocks = 256, kElements = int64_t{1} << 22;
  const BiasGrid grid(p);
  const int64_t owners = max64(1, BiasGrid::product(grid.own));
  const int64_t fitting = kElements / max64(1, BiasGrid::product(p.bias_size));
  p.plan.bias_slots =
      max64(1, min64(min64(kBlocks / owners, fitting), BiasGrid::product(grid.summed)));
}

}  // namespace attn::cuda
