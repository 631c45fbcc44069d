#include "bindings/attention_cpu.h"

#include "cpu/dispatch.h"

namespace attn {

void fill_attention_on_cpu(const char* op, const AttentionArguments& a, AttentionParams& p,
                           BlockTableArrays& built) {
  fill_attention(op, a, p);
  check_mask_values(p.mask, p.B);
  if (const int64_t* seed = attention_seed(a)) p.dropout.seed = static_cast<uint64_t>(*seed);
  if (!a.mask.block_table.empty())
    p.mask.table = lowered_table(a.mask.block_table, p.B, p.Hq, p.Lq, p.Lk, built);
}

const AttentionKernels& attention_kernels(const AttentionParams& p) {
  return kernels().attention[static_cast<int>(p.query.dtype)];
}

}  // namespace attn
