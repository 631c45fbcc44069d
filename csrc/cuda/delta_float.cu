#include "cuda/delta_plain.cuh"

namespace attn::cuda {
template void delta_plain_forward<float>(const LinearParams&, void*, Stream);
template void delta_plain_backward<float>(const LinearGradParams&, void*, Stream);
template void delta_plain_step<float>(const LinearParams&, Stream);
}  // namespace attn::cuda
