#include "bindings/attention_cuda.h"

STABLE_TORCH_LIBRARY_IMPL(attention_ext, CUDA, m) {
  m.impl("attention", TORCH_BOX(&attn::cuda::attention));
  m.impl("_attention_forward", TORCH_BOX(&attn::cuda::attention_forward));
  m.impl("_attention_backward", TORCH_BOX(&attn::cuda::attention_backward));
  m.impl("_pack_mask_bits", TORCH_BOX(&attn::cuda::pack_mask_bits));
  m.impl("_dropout_keep", TORCH_BOX(&attn::cuda::dropout_keep));
}
