// The arguments and results that a backward call has beside those of forward.
#pragma once

#include "bindings/attention_arguments.h"

namespace attn {

struct AttentionGradArguments {
  const Tensor& grad_out;
  const OptionalTensor& grad_lse;
  const Tensor &out, &lse;
  const std::vector<bool>& needs;
};

// Checks what the forward operator gave and its gradients, and puts them into p.
void fill_results(const AttentionArguments& a, const AttentionGradArguments& g,
                  AttentionGradParams& p);

// dq, dk, dv, dbias, dsinks, dalibi_slopes, uninitialized and beside query; those that `needs`
// doesn't ask for are empty, and absent in p.
std::vector<Tensor> make_gradients(const AttentionArguments& a, const std::vector<bool>& needs,
                                   AttentionGradParams& p);

}  // namespace attn
