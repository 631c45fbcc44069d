#include "cuda/linear_forward.cuh"

namespace attn::cuda {
template void linear_states<TensorArithmetic<Dtype::kFloat16>>(const LinearCall&, Stream);
template void linear_outputs<TensorArithmetic<Dtype::kFloat16>>(const LinearCall&, Stream);
template bool linear_tensor_forward<Dtype::kFloat16>(const LinearCall&, Stream);
}  // namespace attn::cuda
