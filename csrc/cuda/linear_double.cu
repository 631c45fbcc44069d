#include "cuda/linear_forward.cuh"
#include "cuda/linear_step.cuh"

namespace attn::cuda {
template void linear_states<PlainArithmetic<double>>(const LinearCall&, Stream);
template void linear_outputs<PlainArithmetic<double>>(const LinearCall&, Stream);
template void linear_forward<double>(const LinearCall&, Stream);
template void linear_step<double>(const LinearCall&, Stream);
}  // namespace attn::cuda
