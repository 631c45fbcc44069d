#include "cuda/linear_forward.cuh"
#include "cuda/linear_step.cuh"

namespace attn::cuda {
template void linear_states<PlainArithmetic<float>>(const LinearCall&, Stream);
template void linear_outputs<PlainArithmetic<float>>(const LinearCall&, Stream);
template void linear_forward<float>(const LinearCall&, Stream);
template void linear_step<float>(const LinearCall&, Stream);
}  // namespace attn::cuda
