// Attention forward of 16-bit elements on tensor cores: a block of 4 warps computes some queries of
// one head, each warp its own rows, with the online softmax of csrc/README.md over tiles of keys.
// While a tile is computed with, the next one is copied (Dao 2023, "FlashAttention-2").
#pragma once

#include "cuda/attention_tensor_scores.cuh"

namespace attn::cuda {

// For heads of at most kColumns columns, of keys and of values.
template <int kColumns>
struct ForwardShape {
  static constexpr int kThreads = 128, kWarps = kThreads / 32;
  static constexpr int kRowTiles = kColumns <= 128 ? 2 : 1;  // of 16 rows, of a warp
  static constexpr int kRows = 16 * kRowTiles * kWarps;
  static constexpr int kKeys = kColumns <= 64 ? 64 : 32;
  static constexpr int kKeyTiles = kKeys / 8, kColumnTiles = kColumns / 8;

  static constexpr int kTileBytes = SharedTile<kColumns>::bytes(kKeys);
  static constexpr int kQueryBytes = SharedTile<kColumns>::bytes(kRows);
  static constexpr int kSharedBytes = kQueryBytes + 4 * kTileBytes;  // keys and values, twice
};

// What a warp knows of its rows while tiles of keys pass.
template <Dtype kDtype, int kColumns>
struct WarpSoftmax {
  using Shape = ForwardShape<kColumns>;
  static constexpr int M = Shape::kRowTiles, N = Shape::kKeyTiles;
  using Tile = SharedTile<kColumns>;
  using Scores = WarpScores<kDtype, M, N>;

  const HeadScores<float>& head;
  const int64_t i0;
  float maximum[M][2], sum[M][2];  // the sum is spread over the lanes of a row
  float out[M][Shape::kColumnTiles][4];

  ATTN_DEVICE WarpSoftmax(const HeadScores<float>& of_head, int64_t first)
      : head(of_head), i0(first) {
    const View& sinks = head.p.sinks;
    const float sink =
        sinks ? load_element<float>(sinks.at(0, head.h, 0), sinks.dtype) : -infinity<float>();
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      ATTN_UNROLL
      for (int r = 0; r < 2; ++r) {
        maximum[m][r] = sink;
        sum[m][r] = sink == -infinity<float>() || fragment_column() != 0 ? 0.0f : 1.0f;
      }
    }
    set_zero(out);
  }

  // nonfinite: some value of the tile may be NaN or infinite, which must not reach a row that does
  // not see it. All lanes come.
  ATTN_DEVICE void add_tile(Tile query, Tile key, Tile value, int64_t j0, bool nonfinite) {
    const Scores scores(head, made_anew(i0));
    uint64_t maps[M][2] = {};
    const TileKind kind = scores.map_tile(maps, j0);
    if (kind == TileKind::kSkip) return;
    float s[M][N][4];
    row_products<kDtype>(s, query, static_cast<int>(threadIdx.x) / 32 * Scores::kRows, key);
    scores.scores(s, maps, j0, kind);
    if (scores.only_scale)
      add_to_sums<true>(s);
    else
      add_to_sums<false>(s);
    if (head.dropout.active()) drop(scores, s, j0);
    uint32_t weights[M][N][2];
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) {
        ATTN_UNROLL
        for (int r = 0; r < 2; ++r)
          weights[m][n][r] = pack<kDtype>(s[m][n][2 * r], s[m][n][2 * r + 1]);
      }
    }
    if (nonfinite && kind == TileKind::kPartial)
      add_seen_rows(weights, maps, value);
    else
      add_weighted_rows<kDtype>(out, weights, value);
  }

  // The sum of a row over its lanes.
  ATTN_DEVICE float row_sum(int m, int r) const {
    return across_quad(sum[m][r], [](float x, float y) { return x + y; });
  }

  ATTN_DEVICE float lse(int m, int r, float row_sum) const {
    const float top = maximum[m][r];
    if (row_sum == 0) return -infinity<float>();
    if (top == infinity<float>()) return top;
    return (Scores(head, i0).only_scale ? top / kLog2E : top) + std::log(row_sum);
  }

 private:
  // Scores become weights, exp(s - maximum).
  template <bool kLog2>
  ATTN_DEVICE void add_to_sums(float (&s)[M][N][4]) {
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      ATTN_UNROLL
      for (int r = 0; r < 2; ++r) {
        float top = maximum[m][r];
        ATTN_UNROLL
        for (int n = 0; n < N; ++n)
          top = std::fmax(top, std::fmax(s[m][n][2 * r], s[m][n][2 * r + 1]));
        top = across_quad(top, [](float x, float y) { return std::fmax(x, y); });
        const float base = top == -infinity<float>() ? 0 : top;
        const auto weight = [base](float x) {
          return fast_exp2(kLog2 ? x - base : (x - base) * kLog2E);
        };
        const float shrink = maximum[m][r] == top ? 1 : weight(maximum[m][r]);
        float added = 0;
        ATTN_UNROLL
        for (int n = 0; n < N; ++n) {
          ATTN_UNROLL
          for (int c = 0; c < 2; ++c) {
            float& x = s[m][n][2 * r + c];
            x = weight(x);
            added += x;
          }
        }
        sum[m][r] = sum[m][r] * shrink + added;
        maximum[m][r] = top;
        ATTN_UNROLL
        for (int n = 0; n < Shape::kColumnTiles; ++n) {
          out[m][n][2 * r] *= shrink;
          out[m][n][2 * r + 1] *= shrink;
        }
      }
    }
  }

  // Four neighbouring keys share a draw, and lie in two lanes: each draws for one of two rows.
  ATTN_DEVICE void drop(const Scores& scores, float (&s)[M][N][4], int64_t j0) const {
    const int pair = fragment_column() / 4, own_row = fragment_column() / 2 % 2;
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      uint32_t kept[2] = {0, 0};  // of row g + 8 r, bit 2 n + c
      ATTN_ROLLED
      for (int n = 0; n < N; ++n) {
        const uint32_t drawn =
            head.dropout.keep4(head.b, head.h, scores.row(m, own_row), (j0 + 8 * n) / 4 + pair);
        const uint32_t others = __shfl_xor_sync(kWholeWarp, drawn, 1);
        kept[0] |= ((own_row ? others : drawn) >> 2 * own_row & 3) << 2 * n;
        kept[1] |= ((own_row ? drawn : others) >> 2 * own_row & 3) << 2 * n;
      }
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) {
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e)
          if (!(kept[e / 2] >> (2 * n + e % 2) & 1)) s[m][n][e] = 0;
      }
    }
  }

  // out += weights value, pair by pair, of those that see each other.
  ATTN_DEVICE void add_seen_rows(const uint32_t (&weights)[M][N][2], const uint64_t (&maps)[M][2],
                                 Tile value) {
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) {
      ATTN_ROLLED
      for (int k = 0; k < 8; ++k) {
        const int key = 8 * n + k;
        uint32_t weight[M][2];  // with bit 16 where the pair is seen
        ATTN_UNROLL
        for (int m = 0; m < M; ++m) {
          ATTN_UNROLL
          for (int r = 0; r < 2; ++r) {
            const uint32_t own = k % 2 ? weights[m][n][r] >> 16 : weights[m][n][r] & 0xffff;
            const auto seen = static_cast<uint32_t>(maps[m][r] >> key & 1);
            weight[m][r] = __shfl_sync(kWholeWarp, own | seen << 16, k / 2, 4);
          }
        }
        add_seen_row(weight, value, key);
      }
    }
  }

  ATTN_DEVICE void add_seen_row(const uint32_t (&weight)[M][2], Tile value, int key) {
    ATTN_UNROLL
    for (int n = 0; n < Shape::kColumnTiles; ++n) {
      const auto* pairs = reinterpret_cast<const uint32_t*>(value.chunk(key, n));
      const uint32_t pair = pairs[fragment_column() / 2];
      ATTN_UNROLL
      for (int m = 0; m < M; ++m) {
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e)
          if (weight[m][e / 2] >> 16)
            out[m][n][e] += unpack<kDtype>(weight[m][e / 2]) * unpack<kDtype>(pair >> e % 2 * 16);
      }
    }
  }
};

template <Dtype kDtype, int kColumns>
ATTN_DEVICE void store_rows(const WarpSoftmax<kDtype, kColumns>& warp) {
  using Softmax = WarpSoftmax<kDtype, kColumns>;
  const HeadScores<float>& head = warp.head;
  const AttentionCall& p = head.p;
  const bool in_pairs = p.out.stride[3] == 1 && p.Dv % 2 == 0 && p.out.stride[2] % 2 == 0 &&
                        reinterpret_cast<uintptr_t>(p.out.at(head.b, head.h, 0)) % 4 == 0;
  ATTN_UNROLL
  for (int m = 0; m < Softmax::M; ++m) {
    ATTN_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int64_t i = typename Softmax::Scores(head, warp.i0).row(m, r);
      const float sum = warp.row_sum(m, r);
      if (i >= p.Lq) continue;
      const float factor = sum == 0 ? 0 : static_cast<float>(head.dropout.keep_scale) / sum;
      ATTN_UNROLL
      for (int n = 0; n < Softmax::Shape::kColumnTiles; ++n) {
        const int64_t column = 8 * n + fragment_column();
        if (column >= p.Dv) continue;
        const float* x = warp.out[m][n] + 2 * r;
        const uint32_t pair =
            pack<kDtype>(sum == 0 ? 0 : x[0] * factor, sum == 0 ? 0 : x[1] * factor);
        char* at = p.out.at(head.b, head.h, i, column);
        if (in_pairs) {
          *reinterpret_cast<uint32_t*>(at) = pair;
          continue;
        }
        *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(pair);
        if (column + 1 < p.Dv)
          *reinterpret_cast<uint16_t*>(at + p.out.stride[3] * 2) =
              static_cast<uint16_t>(pair >> 16);
      }
      if (fragment_column() == 0)
        store_element(p.lse.at(head.b, head.h, i), p.lse.dtype, warp.lse(m, r, sum));
    }
  }
}

// The block's queries from i0 on.
template <Dtype kDtype, int kColumns>
ATTN_DEVICE void tensor_forward(const HeadScores<float>& head, int64_t i0, unsigned char* shared) {
  using Shape = ForwardShape<kColumns>;
  constexpr int kThreads = Shape::kThreads, kKeys = Shape::kKeys;
  const AttentionCall& p = head.p;
  const Range rows{i0, min64(i0 + Shape::kRows, p.Lq)}, heads{head.h, head.h + 1};
  const Rows value = rows_of(p.value, head.b, head.h / p.group(), p.Lk, p.Dv);
  const bool key_chunks = has_chunks(head.key), value_chunks = has_chunks(value);
  const SharedTile<kColumns> query_tile{shared, 0};
  const auto key_tile = [=](uint32_t stage) {
    return SharedTile<kColumns>{shared, Shape::kQueryBytes + 2 * stage * Shape::kTileBytes};
  };
  const auto value_tile = [=](uint32_t stage) {
    return SharedTile<kColumns>{shared, key_tile(stage).offset + Shape::kTileBytes};
  };
  const auto copy = [&](uint32_t stage, int64_t j0) {
    copy_rows<kThreads, kKeys>(key_tile(stage), head.key, j0, key_chunks);
    copy_rows<kThreads, kKeys>(value_tile(stage), value, j0, value_chunks);
    end_copy_group();
  };

  const int warp = static_cast<int>(threadIdx.x) / 32;
  WarpSoftmax<kDtype, kColumns> softmax(head, i0 + 16 * Shape::kRowTiles * warp);
  const Range keys = head.keys_of(rows);
  int64_t j0 = keys.begin;
  if (j0 < keys.end) {
    copy_rows<kThreads, Shape::kRows>(query_tile, head.query, i0, has_chunks(head.query));
    copy(0, j0);
  }
  for (uint32_t stage = 0; j0 < keys.end; stage ^= 1) {
    const bool partial =
        p.bias || j0 + kKeys > p.Lk || !p.mask.covers(head.b, heads, rows, {j0, j0 + kKeys});
    wait_for_copies<0>();
    const bool nonfinite =
        __syncthreads_or(partial && copied_nonfinite<kDtype, kThreads, kKeys>(value_tile(stage)));
    const int64_t next = j0 + kKeys;
    if (next < keys.end) copy(stage ^ 1, next);
    softmax.add_tile(query_tile, key_tile(stage), value_tile(stage), j0, nonfinite);
    j0 = next;
  }
  store_rows(softmax);
}

template <Dtype kDtype, int kColumns>
__global__ void __launch_bounds__(ForwardShape<kColumns>::kThreads)
    attention_tensor_forward_kernel(const __grid_constant__ AttentionCall p) {
  if constexpr (kTensorCores) {
    ATTN_SHARED(shared);
    const int64_t tiles = tiles_over(p.Lq, ForwardShape<kColumns>::kRows);
    const int64_t bh = blockIdx.x / tiles;
    const int64_t tile = tiles - 1 - blockIdx.x % tiles;  // causal: the longest rows come first
    const HeadScores<float> head(p, bh / p.Hq, bh % p.Hq);
    tensor_forward<kDtype, kColumns>(head, tile * ForwardShape<kColumns>::kRows, shared);
  }
}

template <Dtype kDtype, int kColumns>
bool launch_tensor_forward(const AttentionCall& p, Stream stream) {
  using Shape = ForwardShape<kColumns>;
  const auto kernel = attention_tensor_forward_kernel<kDtype, kColumns>;
  if (architecture_of(kernel) < 80) return false;
  launch(kernel, p.B * p.Hq * tiles_over(p.Lq, Shape::kRows), Shape::kThreads, Shape::kSharedBytes,
         stream, p);
  return true;
}

template <Dtype kDtype>
bool attention_tensor_forward(const AttentionCall& p, Stream stream) {
  const int64_t columns = max64(p.D, p.Dv);
  if (columns <= 64) return launch_tensor_forward<kDtype, 64>(p, stream);
  if (columns <= 128) return launch_tensor_forward<kDtype, 128>(p, stream);
  return columns <= 256 && launch_tensor_forward<kDtype, 256>(p, stream);
}

}  // namespace attn::cuda
