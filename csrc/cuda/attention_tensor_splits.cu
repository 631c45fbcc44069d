#include "cuda/attention_tensor_splits.cuh"

namespace attn::cuda {
template bool attention_tensor_splits<Dtype::kFloat16>(const AttentionCall&, Stream);
template bool attention_tensor_splits<Dtype::kBFloat16>(const AttentionCall&, Stream);
}  // namespace attn::cuda
