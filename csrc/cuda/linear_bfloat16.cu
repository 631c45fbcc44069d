#include "cuda/linear_forward.cuh"

namespace attn::cuda {
template void linear_states<TensorArithmetic<Dtype::kBFloat16>>(const LinearCall&, Stream);
template void linear_outputs<TensorArithmetic<Dtype::kBFloat16>>(const LinearCall&, Stream);
template bool linear_tensor_forward<Dtype::kBFloat16>(const LinearCall&, Stream);
}  // namespace attn::cuda
