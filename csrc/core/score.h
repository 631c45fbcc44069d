// The score terms of one pair, value and derivative side by side, for scalars and vectors alike:
//   s = softcap * tanh(scale * qk / softcap) + bias - slope * |i' - j|,  i' = i + Lk - Lq
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace attn {

struct ScoreTerms {
  double scale = 1;
  double softcap = 0;        // 0 = off
  int64_t alibi_offset = 0;  // Lk - Lq
};

// With t = tanh(s / softcap): value softcap * t, derivative in s 1 - t**2.
template <class T>
ATTN_HD ATTN_INLINE T softcap_value(T t, T softcap) {
  return softcap * t;
}
template <class T>
ATTN_HD ATTN_INLINE T softcap_derivative(T t, T one) {
  return one - t * t;
}

// Value -slope * distance, derivative in slope -distance.
template <class T>
ATTN_HD ATTN_INLINE T alibi_value(T slope, T distance) {
  return -slope * distance;
}
template <class T>
ATTN_HD ATTN_INLINE T alibi_derivative(T distance) {
  return -distance;
}

}  // namespace attn
