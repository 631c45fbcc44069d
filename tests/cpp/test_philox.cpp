#include <cmath>
#include <cstdint>
#include <set>

#include "check.h"
#include "core/philox.h"

using attn::Dropout;
using attn::philox;
using attn::Philox4;

// Random123's kat_vectors, philox4x32 with 10 rounds.
TEST(philox_gives_the_published_numbers) {
  struct Known {
    uint64_t key;
    uint32_t counter[4], expected[4];
  };
  const Known known[] = {{0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
                         {~uint64_t{0},
                          {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                          {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
                         {uint64_t{0x299f31d0} << 32 | 0xa4093822,
                          {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                          {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  for (const Known& k : known) {
    const Philox4 r = philox(k.key, k.counter[0], k.counter[1], k.counter[2], k.counter[3]);
    for (int t = 0; t < 4; ++t) CHECK_EQ(r.word[t], k.expected[t]);
  }
}

TEST(draws_compare_each_word_with_the_threshold) {
  for (uint64_t seed : {uint64_t{0}, uint64_t{123456789}, ~uint64_t{0}})
    for (uint32_t threshold : {1u, 1u << 30, 1u << 31, ~0u})
      for (int64_t n = 0; n < 200; ++n) {
        Dropout dropout;
        dropout.seed = seed, dropout.threshold = threshold;
        const int64_t b = n % 3, h = n % 5, q = n % 7, group = n;
        const Philox4 r = philox(seed, static_cast<uint32_t>(group), static_cast<uint32_t>(q),
                                 static_cast<uint32_t>(h), static_cast<uint32_t>(b));
        const uint32_t keep = dropout.keep4(b, h, q, group);
        CHECK(keep < 16);
        for (int t = 0; t < 4; ++t)
          CHECK_EQ(keep >> t & 1, static_cast<uint32_t>(r.word[t] >= threshold));
      }
}

TEST(each_index_changes_the_draw) {
  const Philox4 base = philox(5, 1, 2, 3, 4);
  std::set<uint32_t> words(base.word, base.word + 4);
  for (const Philox4& r :
       {philox(6, 1, 2, 3, 4), philox(5 | uint64_t{1} << 32, 1, 2, 3, 4), philox(5, 2, 2, 3, 4),
        philox(5, 1, 3, 3, 4), philox(5, 1, 2, 4, 4), philox(5, 1, 2, 3, 5)})
    words.insert(r.word, r.word + 4);
  CHECK_EQ(words.size(), 28u);
}

TEST(dropout_of_everything_and_of_nothing) {
  Dropout all;
  all.all = true;
  CHECK(all.active());
  CHECK_EQ(all.keep4(0, 0, 0, 0), 0u);
  CHECK(!Dropout().active());
  CHECK_EQ(Dropout().keep4(1, 2, 3, 4), 15u);
}

TEST(dropout_drops_its_share) {
  Dropout dropout;
  dropout.seed = 42;
  for (const double p : {0.01, 0.25, 0.9}) {
    dropout.threshold = static_cast<uint32_t>(p * 4294967296.0);
    const int draws = 1 << 18;
    int kept = 0;
    for (int n = 0; n < draws / 4; ++n)
      kept += __builtin_popcount(dropout.keep4(n % 4, n / 4 % 8, n / 32 % 64, n / 2048));
    CHECK_NEAR(kept, draws * (1 - p), 5 * std::sqrt(draws * p * (1 - p)));
  }
}
