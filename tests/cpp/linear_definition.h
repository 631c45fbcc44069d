// Linear attention and the delta rule by their definition, one token after the other in double,
// with the gradients of a reversed walk.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "linear_case.h"

class LinearDefinition {
 public:
  explicit LinearDefinition(LinearCall& call)
      : call_(call), c_(call.options()), s_(c_.shape), D_(s_.D), Dv_(s_.Dv) {}

  // Fails unless every result is near.
  void check() {
    for (int64_t n = 0; n < c_.sequences(); ++n)
      for (int64_t hs = 0; hs < s_.Hs(); ++hs) check_sequence(n, hs);
  }

 private:
  using Row = std::vector<double>;
  struct State {
    Row S, z;
  };
  LinearCall& call_;
  const LinearCase& c_;
  const LinearShape& s_;
  const int64_t D_, Dv_;
  int64_t b_ = 0, n_ = 0, hs_ = 0, begin_ = 0, end_ = 0, live_ = 0;
  std::vector<State> before_, after_;  // of each token; not causal, of the whole
  std::vector<Row> errors_;

  void fail_unless_near(const char* what, const GuardedArray& array, int64_t b, int64_t h,
                        int64_t i, int64_t d, double expected) const {
    if (!array.exists()) return;
    const double got = array.at(b, h, i, d);
    double tolerance = 1e-11;  // the gradients of a call are made of what it rounded
    if (c_.dtype == attn::Dtype::kFloat32) tolerance = 3e-4;
    if (c_.dtype == attn::Dtype::kFloat16) tolerance = 2e-3;
    if (c_.dtype == attn::Dtype::kBFloat16) tolerance = 2e-2;
    if (std::fabs(got - expected) <= tolerance * (1 + std::fabs(expected))) return;
    check::fail(__FILE__, __LINE__,
                c_.name + ": " + what + " of head " + std::to_string(h) + ", token " +
                    std::to_string(i) + ", column " + std::to_string(d) + " is " +
                    std::to_string(got) + ", not " + std::to_string(expected));
  }

  Row features(const GuardedArray& array, int64_t h, int64_t i) const {
    Row x(D_);
    for (int64_t d = 0; d < D_; ++d) x[d] = array.at(b_, h, i, d);
    const double largest = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double& y : x) {
      if (c_.map == attn::FeatureMap::kElu) y = y > 0 ? y + 1 : std::exp(y);
      if (c_.map == attn::FeatureMap::kRelu) y = std::max(y, 0.0);
      if (c_.map == attn::FeatureMap::kSoftmax) sum += y = std::exp(y - largest);
    }
    for (double& y : x)
      if (c_.map == attn::FeatureMap::kSoftmax) y /= sum;
    return x;
  }
  // dphi to dx
  void to_inputs(const Row& phi, Row& grad) const {
    double mean = 0;
    for (int64_t d = 0; d < D_; ++d) mean += phi[d] * grad[d];
    for (int64_t d = 0; d < D_; ++d) {
      if (c_.map == attn::FeatureMap::kElu) grad[d] *= std::min(phi[d], 1.0);
      if (c_.map == attn::FeatureMap::kRelu) grad[d] = phi[d] > 0 ? grad[d] : 0;
      if (c_.map == attn::FeatureMap::kSoftmax) grad[d] = phi[d] * (grad[d] - mean);
    }
  }
  Row keys(int64_t i) const { return features(call_.key, hs_ / (s_.Hs() / s_.Hk), i); }
  double value(int64_t i, int64_t c) const {
    return call_.value.at(b_, hs_ / (s_.Hs() / s_.Hv), i, c);
  }
  double kept(int64_t i, int64_t d) const {
    switch (c_.decay) {
      case attn::DecayKind::kNone:
        return 1;
      case attn::DecayKind::kHead:
        return std::exp(call_.decay.at(0, hs_, 0, 0));
      case attn::DecayKind::kToken:
        return std::exp(call_.decay.at(b_, hs_, i, 0));
      default:
        return std::exp(call_.decay.at(b_, hs_, i, d));
    }
  }

  void check_sequence(int64_t n, int64_t hs) {
    n_ = n, hs_ = hs, b_ = c_.borders.empty() ? n : 0;
    begin_ = c_.borders.empty() ? 0 : c_.borders[n];
    end_ = c_.borders.empty() ? s_.Lk : c_.borders[n + 1];
    live_ = c_.lengths.empty() ? end_ : c_.lengths[n];
    State state{Row(D_ * Dv_), Row(D_)};
    for (int64_t d = 0; c_.initial && d < D_; ++d) {
      for (int64_t c = 0; c < Dv_; ++c) state.S[d * Dv_ + c] = call_.initial.at(n, hs, d, c);
      if (c_.normalize) state.z[d] = call_.initial_z.at(n, hs, 0, d);
    }
    before_.clear(), after_.clear(), errors_.clear();
    for (int64_t i = begin_; i < live_; ++i) {
      before_.push_back(state);
      errors_.push_back(add_token(i, state));
      after_.push_back(state);
    }
    for (int64_t d = 0; d < D_; ++d) {
      for (int64_t c = 0; c < Dv_; ++c)
        fail_unless_near("state", call_.state, n, hs, d, c, state.S[d * Dv_ + c]);
      if (c_.normalize) fail_unless_near("z", call_.state_z, n, hs, 0, d, state.z[d]);
    }
    State grad{Row(D_ * Dv_), Row(D_)};
    for (int64_t d = 0; d < D_; ++d) {
      for (int64_t c = 0; c < Dv_; ++c) grad.S[d * Dv_ + c] = call_.grad_state.at(n, hs, d, c);
      if (c_.normalize) grad.z[d] = call_.grad_z.at(n, hs, 0, d);
    }
    const int64_t queries = c_.borders.empty() ? s_.Lq : end_;
    if (!c_.causal)
      for (int64_t i = begin_; i < queries; ++i)
        read(i, state, grad, live_ == begin_ && !c_.initial);
    for (int64_t i = end_ - 1; i >= begin_; --i) take_back(i, grad);
    for (int64_t d = 0; d < D_; ++d) {
      for (int64_t c = 0; c < Dv_; ++c)
        fail_unless_near("dinitial", call_.dinitial, n, hs, d, c, grad.S[d * Dv_ + c]);
      if (c_.normalize) fail_unless_near("dinitial z", call_.dinitial_z, n, hs, 0, d, grad.z[d]);
    }
  }

  // Returns v - S^T k, S faded.
  Row add_token(int64_t i, State& state) const {
    const Row k = keys(i);
    for (int64_t d = 0; d < D_; ++d) {
      for (int64_t c = 0; c < Dv_; ++c) state.S[d * Dv_ + c] *= kept(i, d);
      state.z[d] = kept(i, d) * state.z[d] + k[d];
    }
    Row e(Dv_);
    for (int64_t c = 0; c < Dv_; ++c) {
      e[c] = value(i, c);
      for (int64_t d = 0; c_.delta && d < D_; ++d) e[c] -= state.S[d * Dv_ + c] * k[d];
    }
    const double beta = c_.delta ? call_.beta.at(b_, hs_, i, 0) : 1;
    for (int64_t d = 0; d < D_; ++d)
      for (int64_t c = 0; c < Dv_; ++c) state.S[d * Dv_ + c] += beta * k[d] * e[c];
    return e;
  }

  // The outputs of query i, and what they add to the state's gradient.
  void read(int64_t i, const State& state, State& grad, bool blind) const {
    const int64_t group = s_.H() / s_.Hs();
    for (int64_t h = hs_ * group; h < (hs_ + 1) * group; ++h) {
      const Row q = features(call_.query, h / (s_.H() / s_.Hq), i);
      double sum = c_.normalize ? c_.eps : 1 / c_.scale;
      for (int64_t d = 0; c_.normalize && d < D_; ++d) sum += q[d] * state.z[d];
      Row dq(D_);
      double dsum = 0;
      for (int64_t c = 0; c < Dv_; ++c) {
        double out = 0;
        for (int64_t d = 0; d < D_; ++d) out += q[d] * state.S[d * Dv_ + c] / sum;
        fail_unless_near("out", call_.out, b_, h, i, c, blind ? 0 : out);
        const double g = blind ? 0 : call_.grad_out.at(b_, h, i, c) / sum;
        dsum -= c_.normalize ? g * out : 0;
        for (int64_t d = 0; d < D_; ++d) {
          dq[d] += g * state.S[d * Dv_ + c];
          grad.S[d * Dv_ + c] += g * q[d];
        }
      }
      for (int64_t d = 0; d < D_; ++d) dq[d] += dsum * state.z[d], grad.z[d] += dsum * q[d];
      to_inputs(q, dq);
      for (int64_t d = 0; d < D_; ++d) fail_unless_near("dquery", call_.dquery, b_, h, i, d, dq[d]);
    }
  }

  // From the state's gradient after token i to that before it.
  void take_back(int64_t i, State& grad) const {
    Row dk(D_), dv(Dv_), da(D_);
    double dbeta = 0;
    if (i >= live_) {
      const int64_t group = s_.H() / s_.Hs();
      for (int64_t h = hs_ * group; c_.causal && h < (hs_ + 1) * group; ++h) {
        for (int64_t c = 0; c < Dv_; ++c) fail_unless_near("out", call_.out, b_, h, i, c, 0);
        for (int64_t d = 0; d < D_; ++d) fail_unless_near("dquery", call_.dquery, b_, h, i, d, 0);
      }
    } else {
      const State &before = before_[i - begin_], &after = after_[i - begin_];
      if (c_.causal) read(i, after, grad, false);
      const Row k = keys(i), &e = errors_[i - begin_];
      const double beta = c_.delta ? call_.beta.at(b_, hs_, i, 0) : 1;
      for (int64_t c = 0; c < Dv_; ++c) {
        double du = 0;
        for (int64_t d = 0; d < D_; ++d) {
          du += grad.S[d * Dv_ + c] * k[d];
          dk[d] += grad.S[d * Dv_ + c] * beta * e[c];
        }
        dbeta += du * e[c];
        dv[c] = beta * du;
        for (int64_t d = 0; c_.delta && d < D_; ++d) {
          dk[d] -= dv[c] * kept(i, d) * before.S[d * Dv_ + c];
          grad.S[d * Dv_ + c] -= dv[c] * k[d];
        }
      }
      for (int64_t d = 0; d < D_; ++d) {
        dk[d] += c_.normalize ? grad.z[d] : 0;
        const double a = kept(i, d);
        for (int64_t c = 0; c < Dv_; ++c) {
          da[d] += a * grad.S[d * Dv_ + c] * before.S[d * Dv_ + c];
          grad.S[d * Dv_ + c] *= a;
        }
        da[d] += c_.normalize ? a * grad.z[d] * before.z[d] : 0;
        grad.z[d] *= a;
      }
      to_inputs(k, dk);
    }
    for (int64_t d = 0; d < D_; ++d) fail_unless_near("dkey", call_.dkey, b_, hs_, i, d, dk[d]);
    for (int64_t c = 0; c < Dv_; ++c)
      fail_unless_near("dvalue", call_.dvalue, b_, hs_, i, c, dv[c]);
    fail_unless_near("dbeta", call_.dbeta, b_, hs_, i, 0, dbeta);
    double all = 0;
    for (const double x : da) all += x;
    for (int64_t d = 0; d < (c_.decay == attn::DecayKind::kChannel ? D_ : 1); ++d)
      fail_unless_near("ddecay", call_.ddecay, b_, hs_, i, d,
                       c_.decay == attn::DecayKind::kChannel ? da[d] : all);
  }
};
