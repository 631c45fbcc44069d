#include "cuda/attention_splits.cuh"

namespace attn::cuda {
template void attention_splits<float>(const AttentionCall&, Stream);
template void attention_splits<double>(const AttentionCall&, Stream);
}  // namespace attn::cuda
