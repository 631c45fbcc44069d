#include "cuda/attention_backward.cuh"
#include "cuda/attention_forward.cuh"

namespace attn::cuda {
template void attention_forward<double>(const AttentionCall&, Stream);
template void attention_backward<double>(const AttentionCall&, Stream);
}  // namespace attn::cuda
