// How the keys of a call with few queries are cut, so that it fills a device: a function of its
// shapes alone, as its results then are.
#pragma once

#include "core/mask.h"

namespace attn::cuda {

// `count` splits of `keys` keys, the last one shorter; 0: the call is not cut.
struct Splits {
  int64_t count = 0, keys = 0;
};

constexpr int kSplitRows = 64;  // of a block: queries, times the heads that share keys

inline Splits plan_splits(int64_t B, int64_t Hq, int64_t Hkv, int64_t Lq, int64_t Lk) {
  // Two blocks on each multiprocessor of a large device; keys that are worth a block and its share
  // of the merge; what fits into a few tiles of rows, and into one tile of queries of a head.
  constexpr int64_t kBlocks = 264, kLeastKeys = 128, kMostRows = 4096, kFewQueries = 16,
                    kMostQueries = 128;
  const int64_t rows = Hkv > 0 ? Lq * (Hq / Hkv) : 0;
  const bool fills_alone = B * Hq >= kBlocks / 2 && Lq > kFewQueries;
  if (B * rows == 0 || rows > kMostRows || Lq > kMostQueries || fills_alone || Lk < 2 * kLeastKeys)
    return {};
  const int64_t owners = B * Hkv * ((rows + kSplitRows - 1) / kSplitRows);
  const int64_t wanted = max64(1, min64(kBlocks / owners, Lk / kLeastKeys));
  const int64_t tiles = (Lk + kTableTile - 1) / kTableTile;
  const int64_t keys = (tiles + wanted - 1) / wanted * kTableTile;
  return {(Lk + keys - 1) / keys, keys};
}

}  // namespace attn::cuda
