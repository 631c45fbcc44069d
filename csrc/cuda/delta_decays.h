// What a call of the delta rule does with its decays; kernels of one file for every arithmetic.
#pragma once

namespace attn::cuda {

struct DeltaCall;
using Stream = void*;  // cudaStream_t

// call.log_decays
void delta_log_decays(const DeltaCall& call, Stream stream);
// call.ddecay, from decay_terms, states and state_grads.
void delta_decay_grads(const DeltaCall& call, Stream stream);

}  // namespace attn::cuda
