// core/mask.h against the definition of a mask, pair by pair.
#include <cstdint>
#include <vector>

#include "check.h"
#include "core/mask.h"

using attn::Mask;
using attn::Range;

namespace {

constexpr int64_t kBatch = 3, kHeads = 2;

// A mask with storage of its own, and its definition.
struct Case {
  Mask mask;
  std::vector<int64_t> offsets, lengths;
  std::vector<uint64_t> words;

  bool allowed(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const int64_t distance = j - (i + (offsets.empty() ? 0 : offsets[b]));
    if (distance < mask.lower || distance > mask.upper) return false;
    if (attn::modulo(distance, mask.dilation) != mask.phase) return false;
    if (!lengths.empty() && j >= lengths[b]) return false;
    if (words.empty()) return true;
    const int64_t row = b * mask.bits_stride_b + h * mask.bits_stride_h + i * mask.bits_stride_q;
    return words[row + j / 64] >> (j % 64) & 1;
  }
  void point() {
    mask.band_offset = offsets.empty() ? nullptr : offsets.data();
    mask.key_lengths = lengths.empty() ? nullptr : lengths.data();
    mask.bits = words.empty() ? nullptr : words.data();
  }
};

struct Random {
  uint64_t state = 0x9E3779B97F4A7C15u;
  uint64_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
};

// Bits behind the last key are set at random: they must not count.
void add_bits(Case& c, Random& random, int varies) {
  const int64_t words = (c.mask.Lk + 63) / 64, Lq = varies & 1 ? c.mask.Lq : 1;
  const int64_t H = varies & 2 ? kHeads : 1, B = varies & 4 ? kBatch : 1;
  for (int64_t n = 0; n < B * H * Lq * words; ++n) c.words.push_back(random.next() & random.next());
  c.mask.bits_stride_q = varies & 1 ? words : 0;
  c.mask.bits_stride_h = varies & 2 ? Lq * words : 0;
  c.mask.bits_stride_b = varies & 4 ? H * Lq * words : 0;
}

// Calls check(case) for bands, offsets, lengths and bit maps in many combinations.
template <class Check>
void for_each_case(const Check& check) {
  Random random;
  const int64_t sizes[][2] = {{1, 1}, {5, 64}, {70, 65}, {9, 130}, {40, 7}};
  const int64_t bands[][2] = {{-attn::kUnbounded, attn::kUnbounded},
                              {-attn::kUnbounded, 0},
                              {-3, attn::kUnbounded},
                              {-5, 2},
                              {0, 0},
                              {60, 70},
                              {-40, -30},
                              {3, -3}};
  for (const auto& [Lq, Lk] : sizes)
    for (const auto& [lower, upper] : bands)
      for (int kind = 0; kind < 16; ++kind) {
        Case c;
        c.mask.Lq = Lq, c.mask.Lk = Lk, c.mask.lower = lower, c.mask.upper = upper;
        if (kind & 1) c.offsets = {0, 7, -11};
        if (kind & 2) c.lengths = {0, Lk, random.below(Lk + 1)};
        if (kind & 4) add_bits(c, random, static_cast<int>(random.below(8)));
        if (kind & 8)
          c.mask.dilation = 1 + random.below(70), c.mask.phase = random.below(c.mask.dilation);
        c.point();
        check(c, random);
      }
}

bool any_allowed(const Case& c, int64_t b, int64_t h, Range rows, Range keys) {
  for (int64_t i = rows.begin; i < rows.end; ++i)
    for (int64_t j = keys.begin; j < keys.end; ++j)
      if (c.allowed(b, h, i, j)) return true;
  return false;
}

bool all_allowed(const Case& c, int64_t b, int64_t h, Range rows, Range keys) {
  for (int64_t i = rows.begin; i < rows.end; ++i)
    for (int64_t j = keys.begin; j < keys.end; ++j)
      if (!c.allowed(b, h, i, j)) return false;
  return true;
}

Range random_range(Random& random, int64_t length) {
  const int64_t begin = random.below(length);
  return {begin, begin + 1 + random.below(length - begin)};
}

}  // namespace

TEST(bits_between_clamps) {
  for (int64_t begin = -70; begin <= 70; ++begin)
    for (int64_t end = -70; end <= 70; ++end) {
      uint64_t expected = 0;
      for (int64_t t = 0; t < 64; ++t)
        if (begin <= t && t < end) expected |= uint64_t{1} << t;
      CHECK_EQ(attn::bits_between(begin, end), expected);
    }
}

TEST(row_maps_are_the_mask) {
  for_each_case([](const Case& c, Random&) {
    for (int64_t b = 0; b < kBatch; ++b)
      for (int64_t h = 0; h < kHeads; ++h)
        for (int64_t i = 0; i < c.mask.Lq; ++i)
          for (int64_t j0 : {0, 1, 31, 63, 64, 100, 128}) {
            if (j0 >= c.mask.Lk) continue;
            const uint64_t map = c.mask.row_map(b, h, i, j0);
            for (int64_t t = 0; t < 64; ++t) {
              const bool expected = j0 + t < c.mask.Lk && c.allowed(b, h, i, j0 + t);
              CHECK_EQ(map >> t & 1, static_cast<uint64_t>(expected));
            }
          }
  });
}

TEST(ranges_hold_every_allowed_pair) {
  for_each_case([](const Case& c, Random& random) {
    const Mask& mask = c.mask;
    for (int n = 0; n < 40; ++n) {
      const int64_t b = random.below(kBatch), h = random.below(kHeads);
      const Range rows = random_range(random, mask.Lq), keys = random_range(random, mask.Lk);
      const Range seen = mask.key_range(b, rows), seeing = mask.query_range(b, keys);
      for (int64_t i = rows.begin; i < rows.end; ++i)
        for (int64_t j = 0; j < mask.Lk; ++j)
          if (c.allowed(b, h, i, j)) CHECK(seen.begin <= j && j < seen.end);
      for (int64_t i = 0; i < mask.Lq; ++i)
        for (int64_t j = keys.begin; j < keys.end; ++j)
          if (c.allowed(b, h, i, j)) CHECK(seeing.begin <= i && i < seeing.end);
      CHECK(seen.empty() || (0 <= seen.begin && seen.end <= mask.Lk));
      CHECK(seeing.empty() || (0 <= seeing.begin && seeing.end <= mask.Lq));
      if (mask.covers(b, {h, h + 1}, rows, keys)) CHECK(all_allowed(c, b, h, rows, keys));
    }
  });
}

// Without a bit map nothing is visited in vain: time follows the pairs that are allowed.
TEST(ranges_of_bands_are_exact) {
  for_each_case([](const Case& c, Random& random) {
    const Mask& mask = c.mask;
    if (mask.bits || mask.dilation > 1 || mask.lower > mask.upper) return;
    for (int n = 0; n < 40; ++n) {
      const int64_t b = random.below(kBatch);
      const Range rows = random_range(random, mask.Lq), keys = random_range(random, mask.Lk);
      CHECK_EQ(mask.covers(b, {0, 1}, rows, keys), all_allowed(c, b, 0, rows, keys));
      const Range seen = mask.key_range(b, rows);
      for (int64_t j = seen.begin; j < seen.end; ++j) CHECK(any_allowed(c, b, 0, rows, {j, j + 1}));
      const Range seeing = mask.query_range(b, keys);
      for (int64_t i = seeing.begin; i < seeing.end; ++i)
        CHECK(any_allowed(c, b, 0, {i, i + 1}, keys));
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        const Range row = mask.row_interval(b, i);
        for (int64_t j = 0; j < mask.Lk; ++j)
          CHECK_EQ(row.begin <= j && j < row.end, c.allowed(b, 0, i, j));
      }
    }
  });
}

// The sums stay within 64 bits (UBSan watches) for the largest bounds and offsets.
TEST(unbounded_bands_do_not_overflow) {
  const int64_t half = attn::kUnbounded / 2;
  for (const int64_t offset : {-half, int64_t{0}, half})
    for (const int64_t lower : {-attn::kUnbounded, -half, half, attn::kUnbounded})
      for (const int64_t upper : {-attn::kUnbounded, -half, half, attn::kUnbounded}) {
        Case c;
        c.mask.Lq = c.mask.Lk = int64_t{1} << 40, c.mask.lower = lower, c.mask.upper = upper;
        c.offsets = {offset};
        c.point();
        for (const int64_t i : {int64_t{0}, c.mask.Lq - 1})
          for (const int64_t j : {int64_t{0}, c.mask.Lk - 1}) {
            const Range keys = c.mask.key_range(0, {i, i + 1});
            const Range rows = c.mask.query_range(0, {j, j + 1});
            CHECK_EQ(keys.begin <= j && j < keys.end, c.allowed(0, 0, i, j));
            CHECK_EQ(rows.begin <= i && i < rows.end, c.allowed(0, 0, i, j));
          }
      }
}
