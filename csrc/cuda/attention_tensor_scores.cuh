// The scores of a warp's rows with one tile of keys, in the fragments of tensor cores.
#pragma once

#include "cuda/attention_scores.cuh"
#include "cuda/tensor_tile.cuh"

namespace attn::cuda {

constexpr float kLog2E = 1.4426950408889634f;

// tanh to about 1e-7, absolute.
ATTN_DEVICE float fast_tanh(float x) {
  return 1 - 2 * fast_reciprocal(1 + fast_exp2(2 * kLog2E * x));
}

// 16 * M queries of a head from i0 on. A lane has the rows row(m, r) and of a tile of 8 * N keys
// the columns 8 n + 2 t + c, as element 2 * r + c of a fragment.
template <Dtype kDtype, int M, int N>
struct WarpScores {
  static constexpr int kRows = 16 * M, kKeys = 8 * N;
  static_assert(kKeys <= 64 && kRows <= 32);

  const HeadScores<float>& head;
  const AttentionCall& p;
  int64_t i0;
  bool only_scale;  // is what acts on products; then scores are in units of log 2

  ATTN_DEVICE WarpScores(const HeadScores<float>& of_head, int64_t first)
      : head(of_head),
        p(head.p),
        i0(first),
        only_scale(!p.bias && !p.alibi_slopes && !p.sinks && head.softcap == 0) {}

  ATTN_DEVICE int64_t row(int m, int r) const { return i0 + 16 * m + 8 * r + fragment_row(); }

  // The row maps of the tile at j0, of all its keys; bits of keys that don't exist are 0. All lanes
  // come, and get the same answer.
  ATTN_DEVICE TileKind map_tile(uint64_t (&maps)[M][2], int64_t j0) const {
    const Range rows{i0, min64(i0 + kRows, p.Lq)};
    if (rows.empty()) return TileKind::kSkip;
    if (!p.bias && j0 + kKeys <= p.Lk &&
        p.mask.covers(head.b, {head.h, head.h + 1}, rows, {j0, j0 + kKeys}))
      return TileKind::kFull;
    const int64_t i = i0 + lane_in_warp() % kRows;
    const uint64_t inside = bits_between(0, min64(kKeys, p.Lk - j0));
    const uint64_t own = i < p.Lq ? p.mask.row_map(head.b, head.h, i, j0) & inside : 0;
    if (__ballot_sync(kWholeWarp, own != 0) == 0) return TileKind::kSkip;
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      ATTN_UNROLL
      for (int r = 0; r < 2; ++r)
        maps[m][r] = __shfl_sync(kWholeWarp, own, 16 * m + 8 * r + fragment_row());
    }
    return TileKind::kPartial;
  }

  // Calls visit(s[..], m, n, r, c) for every score of the lane.
  template <class Visit>
  static ATTN_DEVICE void for_each(float (&s)[M][N][4], Visit visit) {
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) {
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e) visit(s[m][n][e], m, n, e / 2, e % 2);
      }
    }
  }

  // Products of queries and keys become scores, -inf for pairs that don't count. A bias of -inf
  // takes its pair out of the maps, of which a lane's own columns hold from here on.
  ATTN_DEVICE void scores(float (&s)[M][N][4], uint64_t (&maps)[M][2], int64_t j0,
                          TileKind kind) const {
    const float scale = only_scale ? head.scale * kLog2E : head.scale;
    for_each(s, [&](float& x, int, int, int, int) { x *= scale; });
    if (!only_scale) add_terms(s, maps, j0);
    if (kind == TileKind::kFull) return;
    for_each(s, [&](float& x, int m, int n, int r, int c) {
      if (!seen(maps[m][r], n, c)) x = -infinity<float>();
    });
  }

  static ATTN_DEVICE bool seen(uint64_t map, int n, int c) {
    return map >> fragment_column() >> (8 * n + c) & 1;
  }

 private:
  ATTN_DEVICE void add_terms(float (&s)[M][N][4], uint64_t (&maps)[M][2], int64_t j0) const {
    if (head.softcap != 0) {
      const float inverse = 1 / head.softcap;
      for_each(s, [&](float& x, int, int, int, int) {
        x = softcap_value(fast_tanh(x * inverse), head.softcap);
      });
    }
    if (p.alibi_slopes) {
      for_each(s, [&](float& x, int m, int n, int r, int c) {
        const auto from = static_cast<float>(row(m, r) + p.score.alibi_offset - j0);
        const auto key = static_cast<float>(8 * n + fragment_column() + c);
        x += alibi_value(head.slope, std::fabs(from - key));
      });
    }
    if (p.bias) {
      for_each(s, [&](float& x, int m, int n, int r, int c) {
        if (!seen(maps[m][r], n, c)) return;
        const int column = 8 * n + fragment_column() + c;
        const float added = bias(row(m, r), j0 + column);
        if (added == -infinity<float>()) maps[m][r] &= ~(uint64_t{1} << column);
        x += added;
      });
    }
  }

  ATTN_DEVICE float bias(int64_t i, int64_t j) const {
    const char* at = p.bias.at(head.b, head.h, i, j);
    return p.bias.dtype == Dtype::kFloat32 ? *reinterpret_cast<const float*>(at)
                                           : unpack<kDtype>(*reinterpret_cast<const uint16_t*>(at));
  }
};

}  // namespace attn::cuda
