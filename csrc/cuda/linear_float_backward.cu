#include "cuda/linear_backward.cuh"

namespace attn::cuda {
template void linear_backward<float>(const LinearCall&, Stream);
template void linear_sum_rows<float>(const LinearRowsCall&, Stream);
template void linear_sum_tokens<float>(const LinearRowsCall&, Stream);
}  // namespace attn::cuda
