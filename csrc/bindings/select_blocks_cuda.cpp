#include "bindings/select_blocks_cuda.h"

#include "bindings/device_tensor_cuda.h"
#include "bindings/select_arguments.h"
#include "cuda/select_blocks.h"

namespace attn::cuda {

namespace {

// What a call needs for itself; alive until its kernels are launched, as the allocator hands memory
// out in the order of the stream.
std::vector<Tensor> make_workspace(const Tensor& query, SelectCall& p) {
  std::vector<Tensor> tensors;
  const auto allocate = [&](const std::vector<int64_t>& sizes, ScalarType type) -> const Tensor& {
    return tensors.emplace_back(empty_on(query, sizes, type));
  };
  const ScalarType type = accumulator_of(query.scalar_type());
  p.scored_query = p.query, p.scored_key = p.key;
  if (p.sums_queries()) p.scored_query = view_of(allocate({p.B, p.heads(), p.rows(), p.D}, type));
  if (!p.compression) {
    p.scored_key = view_of(allocate({p.B, p.Hkv, p.columns, p.D}, type));
    p.kept_keys =
        static_cast<int32_t*>(allocate({p.B, p.Hkv, p.columns}, ScalarType::Int).data_ptr());
  }
  p.row_count = rows_at_once(p);
  p.scores = allocate({p.B, p.score_heads(), p.row_count, p.columns}, type).data_ptr();
  p.block_scores = p.compression
                       ? allocate({p.B, p.heads(), p.row_count, p.blocks()}, type).data_ptr()
                       : p.scores;
  return tensors;
}

}  // namespace

Tensor select_blocks(const Tensor& query, const Tensor& key, const OptionalTensor& key_keep,
                     int64_t block_size, int64_t query_block_size, int64_t top_k,
                     int64_t initial_blocks, int64_t local_blocks, bool causal, bool share_heads,
                     const std::vector<int64_t>& compressed, double scale) {
  SelectCall p;
  fill_select({query, key, key_keep, block_size, query_block_size, top_k, initial_blocks,
               local_blocks, causal, share_heads, compressed, scale},
              p);
  const DeviceScope device(query);
  Tensor indices = empty_on(query, {p.B, p.heads(), p.rows(), top_k}, ScalarType::Int);
  if (indices.numel() == 0) return indices;
  p.indices = static_cast<int32_t*>(indices.data_ptr());
  p.columns = p.scored();
  const std::vector<Tensor> workspace = make_workspace(query, p);
  const bool wide = query.scalar_type() == ScalarType::Double;
  (wide ? cuda::select_blocks<double> : cuda::select_blocks<float>)(p, device.stream());
  return indices;
}

}  // namespace attn::cuda
