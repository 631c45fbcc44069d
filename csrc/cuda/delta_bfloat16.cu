#include "cuda/delta_tensor.cuh"

namespace attn::cuda {
template bool delta_tensor_forward<Dtype::kBFloat16>(const LinearParams&, void*, Stream);
template bool delta_tensor_backward<Dtype::kBFloat16>(const LinearGradParams&, void*, Stream);
}  // namespace attn::cuda
