// What the attention kernels of both directions share. Included by kernels.inl.

constexpr int kKeyBlock = 64;  // one word of a row map

// A 64-bit map per lane, kept in words as wide as a lane so that a bit test is one vector
// operation.
template <class A>
struct LaneMaps {
  static constexpr int kBits = 8 * sizeof(A);
  static constexpr int kTileLanes = kMaxVectors * kLanes<A>;
  Word<A> word[64 / kBits][kTileLanes];

  void set(int lane, uint64_t map) {
    for (int part = 0; part < 64 / kBits; ++part)
      word[part][lane] = static_cast<Word<A>>(map >> (part * kBits));
  }
  // Lanes of vector v whose map has bit j.
  ATTN_INLINE IntVec<A> test(int j, int v) const {
    IntVec<A> words;
    memcpy(&words, &word[j / kBits][v * kLanes<A>], sizeof(words));
    return (words & set1_int<A>(Word<A>(1) << (j % kBits))) != 0;
  }
};

// Bit t: the weight of key j0 + t survives dropout, t < n.
inline uint64_t kept_map(const Dropout& dropout, int64_t b, int64_t h, int64_t i, int64_t j0,
                         int n) {
  uint64_t map = 0;
  for (int64_t group = j0 / 4; group * 4 < j0 + n; ++group) {
    const uint64_t keep = dropout.keep4(b, h, i, group);
    const int64_t shift = group * 4 - j0;
    map |= shift < 0 ? keep >> -shift : keep << shift;
  }
  return map & bits_between(0, n);
}

// Nothing acts on the products of queries and keys but the scale. (With scale 0 a masked -inf would
// turn into NaN.)
inline bool has_plain_scores(const AttentionParams& p) {
  return !p.bias && !p.alibi_slopes && p.score.softcap == 0 &&
         static_cast<float>(p.score.scale) != 0;
}
