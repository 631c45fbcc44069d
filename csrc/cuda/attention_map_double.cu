#include "cuda/attention_map.cuh"

namespace attn::cuda {
template void attention_map<double>(const AttentionMapCall&, Stream);
}  // namespace attn::cuda
