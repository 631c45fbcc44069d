#include "cuda/attention_tensor_backward.cuh"

namespace attn::cuda {
template bool attention_tensor_backward<Dtype::kFloat16>(const AttentionCall&, Stream);
}  // namespace attn::cuda
