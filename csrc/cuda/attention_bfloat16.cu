#include "cuda/attention_tensor_forward.cuh"

namespace attn::cuda {
template bool attention_tensor_forward<Dtype::kBFloat16>(const AttentionCall&, Stream);
}  // namespace attn::cuda
