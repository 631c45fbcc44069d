#include "cuda/linear_tensor.cuh"

namespace attn::cuda {
template bool linear_tensor_forward<Dtype::kBFloat16>(const LinearCall&, Stream);
template bool linear_tensor_backward<Dtype::kBFloat16>(const LinearCall&, Stream);
}  // namespace attn::cuda
