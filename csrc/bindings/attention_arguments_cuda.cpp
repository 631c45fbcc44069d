#include "bindings/attention_arguments_cuda.h"

#include "bindings/block_table_cuda.h"

namespace attn::cuda {

void fill_attention_on_device(const char* op, const AttentionArguments& a, AttentionParams& p) {
  fill_attention(op, a, p);
  if (!a.mask.block_table.empty())
    p.mask.table = device_table(a.mask.block_table, p.B, p.Hq, p.Lq, p.Lk, a.query);
}

}  // namespace attn::cuda
