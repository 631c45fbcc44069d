// Linear attention and the delta rule on CUDA devices, as host code calls them. Kernels run on
// `stream`, in order, and don't wait for it; std::runtime_error if one does not start.
#pragma once

#include "core/linear_params.h"

namespace attn::cuda {

using Stream = void*;  // cudaStream_t

// One call on a device, where all pointers lead; the values of key_lengths and cu_seqlens stay
// unread on the host. Forward uses the part that is LinearParams, with part_states and
// chunk_states. columns = Dv and width = D here.
//
// Tokens go in chunks. A chunk's slot is a number of its own among all sequences: those of a batch
// row are chunks_of(L) / sequences apart, and a packed sequence that begins at token i has the
// slots from i / edge + (its number) on.
struct LinearCall : LinearGradParams {
  int64_t edge = 0;         // tokens of a chunk, and columns of a block of them
  View map_query, map_key;  // what `map` is applied to, into query and key; absent = nothing is
  void* chunk_states = nullptr;  // before each chunk, or (not causal) of each sequence
  void* chunk_grads = nullptr;   // their gradients after each chunk, or of each sequence
  View exact_out;                // out, to be made anew for grad_out . out; absent = out is exact
  void* row_factor = nullptr;    // [B, H, Lq]: 1 / denominator, or the scale
  void* row_delta = nullptr;     // [B, H, Lq]: grad_out . out where normalised, else 0
  // Of ddecay, with n = D for decays per channel, else D / edge rounded up: what a token adds to
  // the sum through a query [B, H, Lk, n] and through its key [B, Hs, Lk, n]; <S, R> before a chunk
  // [chunks_of(Lk), Hs, Dv / edge rounded up, D].
  void* query_terms = nullptr;
  void* key_terms = nullptr;
  void* decay_dots = nullptr;

  ATTN_HD int64_t blocks_of(int64_t columns) const { return (columns + edge - 1) / edge; }
  ATTN_HD int64_t chunks_of(int64_t L) const {
    return cu_seqlens ? L / edge + sequences : sequences * blocks_of(L);
  }
  // S [D][Dv] and behind it z [D], one for each (slot or sequence, state head).
  ATTN_HD int64_t chunk_state_size() const { return D * Dv + D; }
};

// dx = what is summed over `group` neighbouring heads, times the derivative of phi: x -> phi(x).
struct LinearRowsCall {
  int64_t B = 0, heads = 0, group = 1, L = 0, D = 0;
  FeatureMap map = FeatureMap::kIdentity;
  View from;  // (B, heads * group, L, D)
  View phi;   // (B, heads, L, D); absent = identity
  View to;    // (B, heads, L, D)
};

// T: what is computed in, float or double; elements of 16 bits are multiplied on tensor cores where
// the device has them. `step` computes one token in place on `initial` and `initial_z`.
template <class T>
void linear_forward(const LinearCall& call, Stream stream);
template <class T>
void linear_backward(const LinearCall& call,
                     Stream stream);  // the gradients whose views are not null
template <class T>
void linear_step(const LinearCall& call, Stream stream);

// Gradients of heads that others share, and through a feature map.
template <class T>
void linear_sum_rows(const LinearRowsCall& call, Stream stream);
// to[h] = the sum over batch rows and tokens.
template <class T>
void linear_sum_tokens(const LinearRowsCall& call, Stream stream);

}  // namespace attn::cuda
