// How a call on a CUDA device is cut: plain arithmetic, of shapes alone.
#include "check.h"
#include "cuda/attention_splits.h"

using attn::cuda::plan_splits;
using attn::cuda::Splits;

TEST(splits_cover_all_keys_in_whole_tiles) {
  for (int64_t heads = 1; heads <= 1024; heads *= 2) {
    for (int64_t Lk = 1; Lk < 300000; Lk = Lk * 5 / 4 + 1) {
      const Splits splits = plan_splits(1, heads, heads, 1, Lk);
      if (Lk < 256) {
        CHECK_EQ(splits.count, 0);
        continue;
      }
      CHECK(splits.count > 0);
      CHECK_EQ(splits.keys % 64, 0);
      CHECK(splits.keys * splits.count >= Lk);
      CHECK(splits.keys * (splits.count - 1) < Lk);
      CHECK(splits.count == 1 || splits.keys >= 128);
      CHECK(splits.count == 1 || splits.count * heads <= 264);
    }
  }
}

TEST(splits_fill_a_device) {
  const int64_t long_keys = 1 << 20;
  for (int64_t B = 1; B <= 64; B *= 2) {
    const Splits splits = plan_splits(B, 32, 4, 1, long_keys);
    CHECK(splits.count * B * 4 <= 264);
    CHECK((splits.count + 1) * B * 4 > 264);
  }
  CHECK_EQ(plan_splits(128, 64, 8, 1, long_keys).count, 1);
}

TEST(rows_of_a_group_count_as_one_block_until_they_fill_it) {
  const int64_t Lk = 264 << 12;
  CHECK_EQ(plan_splits(1, 64, 1, 1, Lk).count, 264);
  CHECK_EQ(plan_splits(1, 64, 1, 2, Lk).count, 132);
  CHECK_EQ(plan_splits(1, 128, 1, 1, Lk).count, 132);
  CHECK_EQ(plan_splits(1, 128, 128, 1, Lk).count, 2);
}

TEST(calls_that_fill_a_device_are_not_cut) {
  CHECK_EQ(plan_splits(5, 32, 32, 17, 4096).count, 0);
  CHECK(plan_splits(5, 32, 32, 16, 4096).count > 0);
  CHECK(plan_splits(1, 32, 32, 128, 4096).count > 0);
  CHECK_EQ(plan_splits(1, 32, 32, 129, 4096).count, 0);
  CHECK_EQ(plan_splits(1, 1024, 1, 5, 4096).count, 0);  // more rows than a few tiles
}

TEST(empty_calls_are_not_cut) {
  CHECK_EQ(plan_splits(0, 1, 1, 1, 4096).count, 0);
  CHECK_EQ(plan_splits(1, 1, 1, 0, 4096).count, 0);
  CHECK_EQ(plan_splits(1, 0, 0, 1, 4096).count, 0);
  CHECK_EQ(plan_splits(1, 1, 1, 1, 0).count, 0);
}
