// Host code alone: how a call is cut and where its workspace lies, functions of its shapes, and
// which arithmetic takes it.
#include "cuda/delta.h"
#include "cuda/delta_workspace.h"

namespace attn::cuda {

namespace {

// Hands out pieces of memory, or only counts them.
class Pieces {
 public:
  explicit Pieces(void* begin) : begin_(static_cast<char*>(begin)) {}
  size_t used() const { return used_; }
  void* take(int64_t elements, size_t size) {
    char* piece = begin_ ? begin_ + used_ : nullptr;
    used_ += tiles_over(elements * static_cast<int64_t>(size), 256) * 256;
    return piece;
  }

 private:
  char* begin_;
  size_t used_ = 0;
};

bool is_double(const LinearParams& p) { return p.query.dtype == Dtype::kFloat64; }

}  // namespace

DeltaPlan::DeltaPlan(const LinearParams& params, const LinearGradParams* gradients,
                     void* workspace) {
  if (gradients)
    static_cast<LinearGradParams&>(call) = *gradients;
  else
    static_cast<LinearParams&>(call) = params;
  const size_t size = is_double(params) ? sizeof(double) : sizeof(float);
  call.chunk = is_double(params) ? 32 : 64;
  call.slots = call.cu_seqlens ? call.Lk / call.chunk + 2 * call.sequences
                               : call.sequences * (tiles_over(call.Lk, call.chunk) + 1);

  const int64_t tokens = call.B * call.Hs * call.Lk, borders = call.Hs * call.slots;
  const int64_t pairs = borders * call.chunk * call.chunk, states = borders * call.D * call.Dv;
  Pieces pieces(workspace);
  call.log_decays =
      static_cast<double*>(pieces.take(tokens * call.decay_columns(), sizeof(double)));
  call.inverses = pieces.take(pairs, size);
  call.states = pieces.take(states, size);
  call.errors = pieces.take(tokens * call.Dv, size);
  if (gradients) {
    call.overlaps = pieces.take(pairs, size);
    call.state_grads = pieces.take(states, size);
    call.corrected_grads = pieces.take(tokens * call.Dv, size);
    call.value_grads = pieces.take(tokens * call.Dv, size);
    call.decay_terms = pieces.take(call.ddecay ? tokens * call.D : 0, size);
  }
  bytes = pieces.used();
}

size_t delta_workspace_bytes(const LinearParams& p) { return DeltaPlan(p, nullptr, nullptr).bytes; }

size_t delta_backward_workspace_bytes(const LinearGradParams& p) {
  return DeltaPlan(p, &p, nullptr).bytes;
}

void delta_forward(const LinearParams& p, void* workspace, Stream stream) {
  if (is_double(p)) return delta_plain_forward<double>(p, workspace, stream);
  if (p.query.dtype == Dtype::kFloat16 &&
      delta_tensor_forward<Dtype::kFloat16>(p, workspace, stream))
    return;
  if (p.query.dtype == Dtype::kBFloat16 &&
      delta_tensor_forward<Dtype::kBFloat16>(p, workspace, stream))
    return;
  delta_plain_forward<float>(p, workspace, stream);
}

void delta_backward(const LinearGradParams& p, void* workspace, Stream stream) {
  if (is_double(p)) return delta_plain_backward<double>(p, workspace, stream);
  if (p.query.dtype == Dtype::kFloat16 &&
      delta_tensor_backward<Dtype::kFloat16>(p, workspace, stream))
    return;
  if (p.query.dtype == Dtype::kBFloat16 &&
      delta_tensor_backward<Dtype::kBFloat16>(p, workspace, stream))
    return;
  delta_plain_backward<float>(p, workspace, stream);
}

void delta_step(const LinearParams& p, Stream stream) {
  (is_double(p) ? delta_plain_step<double> : delta_plain_step<float>)(p, stream);
}

}  // namespace attn::cuda
