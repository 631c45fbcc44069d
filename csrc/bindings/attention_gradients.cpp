#include "bindings/attention_gradients.h"

#include <algorithm>

namespace attn {

void fill_results(const AttentionArguments& a, const AttentionGradArguments& g,
                  AttentionGradParams& p) {
  const auto& [grad_out, grad_lse, out, lse, needs] = g;
  const Sizes size = sizes_of(a.query), full{size[0], size[1], size[2], p.Dv};
  const ScalarType type = a.query.scalar_type();
  const auto matches = [&](const Tensor& t) {
    return on_same_device(t, a.query) && t.dim() == 4 && sizes_of(t) == full &&
           t.scalar_type() == type;
  };
  const auto matches_lse = [&](const Tensor& t) {
    return on_same_device(t, a.query) && t.dim() == 3 &&
           sizes_of(t) == Sizes{size[0], size[1], size[2], 1} &&
           t.scalar_type() == accumulator_of(type);
  };
  check(matches(out), "out: expected what the forward operator gave, got ", describe(out));
  check(matches(grad_out), "grad_out: expected shape and dtype of out, got ", describe(grad_out));
  check(matches_lse(lse), "lse: expected what the forward operator gave, got ", describe(lse));
  if (grad_lse)
    check(matches_lse(*grad_lse), "grad_lse: expected shape and dtype of lse, got ",
          describe(*grad_lse));
  p.out = view_of(out);
  p.grad_out = view_of(grad_out);
  p.lse = view_of(lse);
  if (grad_lse) p.grad_lse = view_of(*grad_lse);
}

std::vector<Tensor> make_gradients(const AttentionArguments& a, const std::vector<bool>& needs,
                                   AttentionGradParams& p) {
  check(needs.size() == 6, "needs: expected 6 booleans, got ", needs.size());
  std::vector<Tensor> gradients;
  const auto none = [&](const Tensor& like) {
    gradients.push_back(empty_on(a.query, {0}, like.scalar_type()));
  };
  const Tensor* inputs[3] = {&a.query, &a.key, &a.value};
  View* views[3] = {&p.dq, &p.dk, &p.dv};
  for (int i = 0; i < 3; ++i) {
    if (!needs[i]) {
      none(*inputs[i]);
      continue;
    }
    gradients.push_back(empty_heads(sizes_of(*inputs[i]), *inputs[i]));
    *views[i] = view_of(gradients.back());
  }
  const OptionalTensor* terms[3] = {&a.bias, &a.sinks, &a.alibi_slopes};
  View* term_views[3] = {&p.dbias, &p.dsinks, &p.dalibi_slopes};
  for (int i = 0; i < 3; ++i) {
    const OptionalTensor& term = *terms[i];
    if (!term || !needs[3 + i]) {
      none(term ? *term : a.query);
      continue;
    }
    const auto sizes = term->sizes();
    gradients.push_back(empty_on(a.query, {sizes.begin(), sizes.end()}, term->scalar_type()));
    *term_views[i] = i == 0 ? view_of(gradients.back()) : head_view(gradients.back());
  }
  p.alibi_per_batch = a.alibi_slopes && a.alibi_slopes->dim() == 2;
  if (a.bias) {
    const Sizes size = sizes_of(*a.bias);
    std::copy(size.begin(), size.end(), p.bias_size);
  }
  return gradients;
}

}  // namespace attn
