#include "cuda/select_blocks.cuh"

namespace attn::cuda {
template void select_blocks<double>(SelectCall, Stream);
}  // namespace attn::cuda
