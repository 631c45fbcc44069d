#include "cuda/linear_backward.cuh"

namespace attn::cuda {
template bool linear_tensor_backward<Dtype::kBFloat16>(const LinearCall&, Stream);
}  // namespace attn::cuda
