#include "cpu/dispatch.h"

#include "cpu/cpu_info.h"

namespace attn {

namespace generic {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
void use_bfloat16_pairs(Kernels&);
}
#endif

namespace {

Kernels kernels_of(CpuCapability capability) {
  switch (capability) {
#if defined(__x86_64__)
    case CpuCapability::kAvx512Bf16: {
      Kernels all = avx512::kernels;
      avx512_bf16::use_bfloat16_pairs(all);
      return all;
    }
    case CpuCapability::kAvx512:
      return avx512::kernels;
    case CpuCapability::kAvx2:
      return avx2::kernels;
#endif
    default:
      return generic::kernels;
  }
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = kernels_of(cpu_capability());
  return chosen;
}

}  // namespace attn
