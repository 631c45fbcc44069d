// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011),
// and the dropout draw made of it: a function of (seed, b, h, q, k) alone, the same on every
// device.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace attn {

struct Philox4 {
  uint32_t word[4];
};

ATTN_HD inline Philox4 philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Weight (b, h, q, k) is dropped iff its 32 random bits fall below the threshold p * 2**32; `all`
// is p = 1.
struct Dropout {
  uint64_t seed = 0;
  uint32_t threshold = 0;
  bool all = false;
  double keep_scale = 1;  // 1 / (1 - p), 0 for p = 1

  ATTN_HD bool active() const { return threshold != 0 || all; }

  // Bit t of the result: weight of key 4 * k_group + t is kept.
  ATTN_HD uint32_t keep4(int64_t b, int64_t h, int64_t q, int64_t k_group) const {
    if (all) return 0;
    const Philox4 r = philox(seed, static_cast<uint32_t>(k_group), static_cast<uint32_t>(q),
                             static_cast<uint32_t>(h), static_cast<uint32_t>(b));
    uint32_t keep = 0;
    for (int t = 0; t < 4; ++t) keep |= static_cast<uint32_t>(r.word[t] >= threshold) << t;
    return keep;
  }
};

}  // namespace attn
