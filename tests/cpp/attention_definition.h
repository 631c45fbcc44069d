// Attention and its gradients by their definition: a loop over queries and keys in double.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention_case.h"

// A dense array of doubles, broadcast along dimensions of size 1.
struct Sums {
  std::array<int64_t, 4> size;
  std::vector<double> data;

  Sums(int64_t a, int64_t b, int64_t c, int64_t d)
      : size{a, b, c, d}, data(static_cast<size_t>(a * b * c * d)) {}
  explicit Sums(const GuardedArray& like)
      : Sums(like.size(0), like.size(1), like.size(2), like.size(3)) {}
  double& operator()(int64_t a, int64_t b, int64_t c, int64_t d) {
    const int64_t index[4] = {a, b, c, d};
    int64_t offset = 0;
    for (int n = 0; n < 4; ++n) offset = offset * size[n] + (size[n] == 1 ? 0 : index[n]);
    return data[static_cast<size_t>(offset)];
  }
};

// Of the largest expected value; out, as it is rounded, is part of every gradient.
inline double tolerance_of(attn::Dtype dtype) {
  switch (dtype) {
    case attn::Dtype::kFloat64:
      return 1e-12;
    case attn::Dtype::kFloat32:
      return 2e-5;
    case attn::Dtype::kBFloat16:
      return 0x1p-7;
    default:
      return 0x1p-10;
  }
}

inline void check_close(const char* what, const std::string& name, const GuardedArray& found,
                        Sums& expected, double tolerance) {
  if (!found.exists()) return;
  double largest = 1;
  for (const double x : expected.data)
    if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
  found.for_each([&](int64_t b, int64_t h, int64_t l, int64_t d) {
    const double a = found.at(b, h, l, d), e = expected(b, h, l, d);
    if (a == e || std::fabs(a - e) <= tolerance * largest) return;
    check::fail(__FILE__, __LINE__,
                name + ": " + what + "[" + std::to_string(b) + ", " + std::to_string(h) + ", " +
                    std::to_string(l) + ", " + std::to_string(d) + "] is " + check::show(a) +
                    ", expected " + check::show(e));
  });
}

// One query row: scores and their softmax, with what the chain rule needs.
struct Row {
  std::vector<double> weight, slope_of_cap;  // softmax over keys; ds / d(scale * qk)
  double lse = -INFINITY;
};

inline Row softmax_row(const AttentionCall& call, int64_t b, int64_t h, int64_t i) {
  const AttentionCase& c = call.options();
  const AttentionShape& s = c.shape;
  const int64_t hkv = h / (s.Hq / s.Hkv);
  std::vector<double> score(static_cast<size_t>(s.Lk), -INFINITY);
  Row row{std::vector<double>(score.size()), std::vector<double>(score.size(), 1), -INFINITY};
  double top = c.sinks ? call.sinks.at(0, h, 0, 0) : -INFINITY;
  for (int64_t j = 0; j < s.Lk; ++j) {
    if (!call.allowed(b, h, i, j)) continue;
    double x = 0;
    for (int64_t d = 0; d < s.D; ++d) x += call.query.at(b, h, i, d) * call.key.at(b, hkv, j, d);
    x *= c.scale;
    if (c.softcap > 0) {
      const double t = std::tanh(x / c.softcap);
      row.slope_of_cap[j] = 1 - t * t;
      x = c.softcap * t;
    }
    if (c.bias) x += call.bias.at(b, h, i, j);
    if (c.alibi)
      x -= call.slopes.at(b, h, 0, 0) * static_cast<double>(std::abs(i + s.Lk - s.Lq - j));
    score[j] = x;
    top = std::max(top, x);
  }
  if (top == -INFINITY) return row;
  double sum = c.sinks ? std::exp(call.sinks.at(0, h, 0, 0) - top) : 0;
  for (const double x : score) sum += std::exp(x - top);
  row.lse = top + std::log(sum);
  for (int64_t j = 0; j < s.Lk; ++j) row.weight[j] = std::exp(score[j] - row.lse);
  return row;
}

// Checks what the last run of the call gave.
inline void check_against_definition(AttentionCall& call, bool backward) {
  const AttentionCase& c = call.options();
  const AttentionShape& s = c.shape;
  Sums out(call.out), lse(call.lse), dq(call.query), dk(call.key), dv(call.value);
  Sums dbias(c.bias ? Sums(call.bias) : Sums(1, 1, 1, 1)), dsinks(1, s.Hq, 1, 1);
  Sums dslopes(c.alibi_per_batch ? s.B : 1, s.Hq, 1, 1);
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t h = 0; h < s.Hq; ++h)
      for (int64_t i = 0; i < s.Lq; ++i) {
        const int64_t hkv = h / (s.Hq / s.Hkv);
        const Row row = softmax_row(call, b, h, i);
        lse(b, h, i, 0) = row.lse;
        const double dlse = c.grad_lse ? call.grad_lse.at(b, h, i, 0) : 0;
        std::vector<double> dp(row.weight.size());
        double delta = -dlse;
        for (int64_t j = 0; j < s.Lk; ++j) {
          const double kept = row.weight[j] == 0 ? 0 : call.kept(b, h, i, j);
          if (row.weight[j] == 0) continue;
          for (int64_t d = 0; d < s.Dv; ++d) {
            const double v = call.value.at(b, hkv, j, d), g = call.grad_out.at(b, h, i, d);
            out(b, h, i, d) += row.weight[j] * kept * v;
            dv(b, hkv, j, d) += row.weight[j] * kept * g;
            dp[j] += kept * g * v;
          }
          delta += row.weight[j] * dp[j];
        }
        if (!backward) continue;
        if (c.sinks) dsinks(0, h, 0, 0) -= std::exp(call.sinks.at(0, h, 0, 0) - row.lse) * delta;
        for (int64_t j = 0; j < s.Lk; ++j) {
          const double ds = row.weight[j] * (dp[j] - delta);
          if (c.bias) dbias(b, h, i, j) += ds;
          dslopes(b, h, 0, 0) -= ds * static_cast<double>(std::abs(i + s.Lk - s.Lq - j));
          const double dx = ds * row.slope_of_cap[j] * c.scale;
          for (int64_t d = 0; d < s.D; ++d) {
            dq(b, h, i, d) += dx * call.key.at(b, hkv, j, d);
            dk(b, hkv, j, d) += dx * call.query.at(b, h, i, d);
          }
        }
      }
  const double tolerance = tolerance_of(c.dtype);
  const double of_lse = c.dtype == attn::Dtype::kFloat64 ? 1e-12 : 2e-5;
  check_close("out", c.name, call.out, out, tolerance);
  check_close("lse", c.name, call.lse, lse, of_lse);
  if (!backward) return;
  check_close("dq", c.name, call.dq, dq, 2 * tolerance);
  check_close("dk", c.name, call.dk, dk, 2 * tolerance);
  check_close("dv", c.name, call.dv, dv, 2 * tolerance);
  const double of_terms = std::max(2 * tolerance, 2e-5);  // sinks and slopes are float
  check_close("dbias", c.name, call.dbias, dbias,
              c.bias && c.bias_dtype == c.dtype ? 2 * tolerance : of_terms);
  check_close("dsinks", c.name, call.dsinks, dsinks, of_terms);
  check_close("dalibi", c.name, call.dslopes, dslopes, of_terms);
}
