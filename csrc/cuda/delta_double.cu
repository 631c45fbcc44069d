#include "cuda/delta_plain.cuh"

namespace attn::cuda {
template void delta_plain_forward<double>(const LinearParams&, void*, Stream);
template void delta_plain_backward<double>(const LinearGradParams&, void*, Stream);
template void delta_plain_step<double>(const LinearParams&, Stream);
}  // namespace attn::cuda
