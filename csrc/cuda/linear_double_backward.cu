#include "cuda/linear_backward.cuh"

namespace attn::cuda {
template void linear_backward<double>(const LinearCall&, Stream);
template void linear_sum_rows<double>(const LinearRowsCall&, Stream);
template void linear_sum_tokens<double>(const LinearRowsCall&, Stream);
}  // namespace attn::cuda
