#include "bindings/attention_arguments_cuda.h"

#include "bindings/block_table_cuda.h"

namespace attn::cuda {

std::vector<Tensor> fill_attention_on_device(const char* op, const AttentionArguments& a,
                                             AttentionParams& p) {
  fill_attention(op, a, p);
  std::vector<Tensor> built;
  if (!a.mask.block_table.empty())
    p.mask.table = device_table(a.mask.block_table, p.B, p.Hq, p.Lq, p.Lk, a.query, built);
  return built;
}

}  // namespace attn::cuda
