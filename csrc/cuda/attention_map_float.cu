#include "cuda/attention_map.cuh"

namespace attn::cuda {

template void attention_map<float>(const AttentionMapCall&, Stream);

// Host code alone: enough blocks for a large device.
int64_t attention_map_chunks(const AttentionCall& p) {
  constexpr int64_t kBlocks = 512;
  return max64(1, min64(tiles_over(kBlocks, max64(1, p.B * p.Hq)), tiles_over(p.Lk, kTile)));
}

}  // namespace attn::cuda
