#include "cuda/attention_backward.cuh"
#include "cuda/attention_forward.cuh"

namespace attn::cuda {
template void attention_forward<float>(const AttentionCall&, Stream);
template void attention_backward<float>(const AttentionCall&, Stream);
}  // namespace attn::cuda
