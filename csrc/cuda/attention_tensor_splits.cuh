// The splits of attention_splits.cuh of 16-bit elements, on tensor cores. Four warps own 16 rows
// each where a block has 64; where it has less, warps of the same rows take keys of a tile in turn,
// and add up what they found at the end.
#pragma once

#include <type_traits>

#include "cuda/attention_splits.cuh"
#include "cuda/attention_tensor_forward.cuh"

namespace attn::cuda {

template <int kColumns>
struct SplitShape {
  using Tile = SharedTile<kColumns>;
  static constexpr int kThreads = 128, kWarps = kThreads / 32;
  static constexpr int kBlocks = kColumns <= 128 ? 3 : 1;  // at a time
  static constexpr int kRowTiles = 1, kRows = kSplitRows;
  static constexpr int kKeys = kColumns <= 128 ? 64 : 32;  // of a tile
  static constexpr int kWarpKeys = 16;                     // that a warp computes with at a time
  static constexpr int kKeyTiles = kWarpKeys / 8, kColumnTiles = kColumns / 8;
  static_assert(16 * kWarps == kRows);

  static constexpr int kTileBytes = Tile::bytes(kKeys), kQueryBytes = Tile::bytes(kRows);
  static constexpr int kSharedBytes = kQueryBytes + 4 * kTileBytes;
  static_assert(kSharedBytes <= kMostShared);
};

// Which rows and keys of its block's tiles are a warp's.
struct WarpShare {
  int row, part, parts;  // its keys: every parts-th kWarpKeys of them

  ATTN_DEVICE explicit WarpShare(int64_t rows) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int row_tiles = rows <= 16 ? 1 : rows <= 32 ? 2 : 4;
    row = warp % row_tiles * 16;
    part = warp / row_tiles;
    parts = 4 / row_tiles;
  }
};

// What a warp has summed, for another one of the same rows: lane by lane, in shared memory.
template <class Softmax>
class WarpSums {
 public:
  static constexpr int kCount = 4 + 4 * std::extent_v<decltype(Softmax::out), 1>;

  static constexpr int kBytes = kCount * 32 * sizeof(float);

  ATTN_DEVICE WarpSums(unsigned char* shared, int warp)
      : at_(reinterpret_cast<float*>(shared) + warp * kCount * 32 + lane_in_warp()) {}

  ATTN_DEVICE void put(const Softmax& softmax) {
    ATTN_UNROLL
    for (int r = 0; r < 2; ++r) {
      at_[32 * r] = softmax.maximum[0][r];
      at_[32 * (2 + r)] = softmax.sum[0][r];
    }
    ATTN_UNROLL
    for (int e = 4; e < kCount; ++e) at_[32 * e] = softmax.out[0][e / 4 - 1][e % 4];
  }

  // unit: log 2 of what maxima are in.
  ATTN_DEVICE void add_to(Softmax& softmax, float unit) const {
    ATTN_UNROLL
    for (int r = 0; r < 2; ++r) {
      const float own = softmax.maximum[0][r], other = at_[32 * r], top = std::fmax(own, other);
      const float base = top == -infinity<float>() ? 0 : top;
      const float keep = fast_exp2((own - base) * unit), add = fast_exp2((other - base) * unit);
      softmax.maximum[0][r] = top;
      softmax.sum[0][r] = softmax.sum[0][r] * keep + at_[32 * (2 + r)] * add;
      ATTN_UNROLL
      for (int e = 4; e < kCount; ++e) {
        if (e % 4 / 2 != r) continue;
        float& sum = softmax.out[0][e / 4 - 1][e % 4];
        sum = sum * keep + at_[32 * e] * add;
      }
    }
  }

 private:
  float* at_;
};

template <Dtype kDtype, int kColumns>
ATTN_DEVICE void tensor_split(const AttentionCall& p, unsigned char* shared) {
  using Shape = SplitShape<kColumns>;
  using Tile = typename Shape::Tile;
  using Softmax = WarpSoftmax<kDtype, Shape, GroupScores<float>>;
  static_assert(Shape::kWarps * WarpSums<Softmax>::kBytes <= Shape::kSharedBytes);
  const SplitItem item(p, blockIdx.x);
  const GroupScores<float> head(p, item.b, item.h, item.keys(p));
  const WarpShare share(head.row_count() - item.row);
  Softmax softmax(head, item.row + share.row);
  pass_keys<kDtype, Shape>(
      head, item.row, shared, [&](Tile query, Tile key, Tile value, int64_t j0, bool nonfinite) {
        ATTN_ROLLED
        for (int k = share.part * Shape::kWarpKeys; k < Shape::kKeys;
             k += share.parts * Shape::kWarpKeys)
          softmax.add_tile(query, share.row, key.from_row(k), value.from_row(k), j0 + k, nonfinite);
      });

  __syncthreads();  // the last tile has been read
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (share.part > 0) WarpSums<Softmax>(shared, warp).put(softmax);
  __syncthreads();
  if (share.part > 0) return;
  const float unit = typename Softmax::Scores(head, item.row, 0).is_plain() ? 1 : kLog2E;
  for (int part = 1; part < share.parts; ++part)
    WarpSums<Softmax>(shared, warp + part * (Shape::kWarps / share.parts)).add_to(softmax, unit);
  softmax.finish([&](int m, int r, int64_t row, float factor, float lse) {
    const int64_t place = split_place(head, item.split, row);
    float* out = static_cast<float*>(p.split_out) + place * p.Dv;
    ATTN_UNROLL
    for (int n = 0; n < Shape::kColumnTiles; ++n) {
      ATTN_UNROLL
      for (int c = 0; c < 2; ++c) {
        const int64_t column = 8 * n + fragment_column() + c;
        if (column < p.Dv) out[column] = softmax.out[m][n][2 * r + c] * factor;
      }
    }
    if (fragment_column() == 0) static_cast<float*>(p.split_lse)[place] = lse;
  });
}

template <Dtype kDtype, int kColumns>
__global__ void __launch_bounds__(SplitShape<kColumns>::kThreads, SplitShape<kColumns>::kBlocks)
    attention_tensor_split_kernel(const __grid_constant__ AttentionCall p) {
  if constexpr (kTensorCores) {
    ATTN_SHARED(shared);
    tensor_split<kDtype, kColumns>(p, shared);
  }
}

template <Dtype kDtype, int kColumns>
bool launch_tensor_splits(const AttentionCall& p, Stream stream) {
  using Shape = SplitShape<kColumns>;
  const auto kernel = attention_tensor_split_kernel<kDtype, kColumns>;
  if (architecture_of(kernel) < 80) return false;
  launch(kernel, split_items(p), Shape::kThreads, Shape::kSharedBytes, stream, p);
  return true;
}

template <Dtype kDtype>
bool attention_tensor_splits(const AttentionCall& p, Stream stream) {
  const int64_t columns = max64(p.D, p.Dv);
  if (columns <= 64) return launch_tensor_splits<kDtype, 64>(p, stream);
  if (columns <= 128) return launch_tensor_splits<kDtype, 128>(p, stream);
  return columns <= 256 && launch_tensor_splits<kDtype, 256>(p, stream);
}

}  // namespace attn::cuda
