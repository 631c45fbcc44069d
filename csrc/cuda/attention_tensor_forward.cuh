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
  using Tile = SharedTile<kColumns>;

  static constexpr int kTileBytes = SharedTile<kColumns>::bytes(kKeys);
  static constexpr int kQueryBytes = SharedTile<kColumns>::bytes(kRows);
  static constexpr int kSharedBytes = kQueryBytes + 4 * kTileBytes;  // keys and values, twice
  static_assert(kSharedBytes <= kMostShared);
};

// What a warp knows of its rows while tiles of keys pass.
template <Dtype kDtype, class Shape, class Head>
struct WarpSoftmax {
  static constexpr int M = Shape::kRowTiles, N = Shape::kKeyTiles;
  using Tile = typename Shape::Tile;
  using Scores = WarpScores<kDtype, M, N, RowsAre::kQueries, Head>;

  const Head& head;
  const int64_t i0;
  float maximum[M][2], sum[M][2];  // the sum is spread over the lanes of a row
  float out[M][Shape::kColumnTiles][4];

  ATTN_DEVICE WarpSoftmax(const Head& of_head, int64_t first) : head(of_head), i0(first) {
    const float sink = head.sink();
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

  // The warp's rows begin at query_row of their tile. nonfinite: some value of the tile may be NaN
  // or infinite, which must not reach a row that does not see it. All lanes come.
  ATTN_DEVICE void add_tile(Tile query, int query_row, Tile key, Tile value, int64_t j0,
                            bool nonfinite) {
    const Scores scores(head, made_anew(i0), j0);
    uint32_t seen[M][2], weights[M][N][2];
    const TileKind kind = scores.map_tile(seen);
    if (kind == TileKind::kSkip) return;
    float s[M][N][4];
    row_products<kDtype>(s, query, query_row, key);
    // Plain scores are in units of log 2.
    scores.scores(s, seen, kind, scores.is_plain() ? kLog2E : 1);
    if (scores.is_plain())
      add_to_sums<true>(s);
    else
      add_to_sums<false>(s);
    if (head.dropout.active()) {
      uint32_t kept[M][2];
      scores.kept(kept);
      Scores::for_each(s, [&](float& x, int m, int n, int r, int c) {
        if (!Scores::bit(kept, m, n, r, c)) x = 0;
      });
    }
    pack_weights<kDtype>(weights, s);
    if (nonfinite && kind == TileKind::kPartial)
      add_seen_rows<kDtype>(out, weights, seen, value);
    else
      add_weighted_rows<kDtype>(out, weights, value);
  }

  // Calls visit(m, r, row, factor, lse) for the rows that exist: out times factor is their result.
  template <class Visit>
  ATTN_DEVICE void finish(Visit visit) {
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      ATTN_UNROLL
      for (int r = 0; r < 2; ++r) {
        const int64_t row = i0 + Scores::row(m, r);
        const float whole = across_quad(sum[m][r], [](float x, float y) { return x + y; });
        if (row >= head.row_count()) continue;
        if (whole == 0) clear_row(m, r);
        const float factor =
            whole == 0 ? 0.0f : static_cast<float>(head.dropout.keep_scale) / whole;
        visit(m, r, row, factor, lse(maximum[m][r], whole));
      }
    }
  }

 private:
  ATTN_DEVICE void clear_row(int m, int r) {
    ATTN_UNROLL
    for (int n = 0; n < Shape::kColumnTiles; ++n) out[m][n][2 * r] = out[m][n][2 * r + 1] = 0;
  }

  ATTN_DEVICE float lse(float top, float whole) const {
    if (whole == 0) return -infinity<float>();
    if (top == infinity<float>()) return top;
    return (Scores(head, i0, 0).is_plain() ? top / kLog2E : top) + std::log(whole);
  }

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
};

// Calls visit(query, key, value, j0, nonfinite) for tile after tile of keys and values that some of
// the block's rows from i0 on see, as WarpSoftmax::add_tile takes them.
template <Dtype kDtype, class Shape, class Head, class Visit>
ATTN_DEVICE void pass_keys(const Head& head, int64_t i0, unsigned char* shared, Visit visit) {
  using Tile = typename Shape::Tile;
  constexpr int kThreads = Shape::kThreads, kKeys = Shape::kKeys;
  const AttentionCall& p = head.p;
  const Range rows{i0, min64(i0 + Shape::kRows, head.row_count())};
  const Rows value = rows_of(p.value, head.b, head.h / p.group(), p.Lk, p.Dv);
  const bool key_chunks = has_chunks(head.key), value_chunks = has_chunks(value);
  const Tile query_tile{shared, 0};
  const auto key_tile = [=](uint32_t stage) {
    return Tile{shared, Shape::kQueryBytes + 2 * stage * Shape::kTileBytes};
  };
  const auto value_tile = [=](uint32_t stage) {
    return Tile{shared, key_tile(stage).offset + Shape::kTileBytes};
  };
  const auto copy = [&](uint32_t stage, int64_t j0) {
    copy_rows<kThreads, kKeys>(key_tile(stage), head.key, j0, key_chunks);
    copy_rows<kThreads, kKeys>(value_tile(stage), value, j0, value_chunks);
    end_copy_group();
  };

  const Range keys = head.keys_of(rows);
  int64_t j0 = head.next_keys(rows, keys.begin);
  if (j0 < keys.end) {
    copy_rows<kThreads, Shape::kRows>(query_tile, head.query, i0, has_chunks(head.query));
    copy(0, j0);
  }
  for (uint32_t stage = 0; j0 < keys.end; stage ^= 1) {
    const bool partial = p.bias || j0 + kKeys > p.Lk || !head.covers(rows, {j0, j0 + kKeys});
    wait_for_copies<0>();
    const bool nonfinite =
        __syncthreads_or(partial && copied_nonfinite<kDtype, kThreads, kKeys>(value_tile(stage)));
    const int64_t next = head.next_keys(rows, j0 + kKeys);
    if (next < keys.end) copy(stage ^ 1, next);
    visit(query_tile, key_tile(stage), value_tile(stage), j0, nonfinite);
    j0 = next;
  }
}

// The block's queries from i0 on.
template <Dtype kDtype, int kColumns>
ATTN_DEVICE void tensor_forward(const HeadScores<float>& head, int64_t i0, unsigned char* shared) {
  using Shape = ForwardShape<kColumns>;
  using Tile = typename Shape::Tile;
  const AttentionCall& p = head.p;
  const int own = static_cast<int>(threadIdx.x) / 32 * 16 * Shape::kRowTiles;
  WarpSoftmax<kDtype, Shape, HeadScores<float>> softmax(head, i0 + own);
  pass_keys<kDtype, Shape>(head, i0, shared,
                           [&](Tile query, Tile key, Tile value, int64_t j0, bool nonfinite) {
                             softmax.add_tile(query, own, key, value, j0, nonfinite);
                           });
  softmax.finish([&](int m, int r, int64_t i, float factor, float lse) {
    store_row<kDtype>(p.out, p.Dv, head.b, head.h, i, r, softmax.out[m], factor);
    if (fragment_column() == 0) store_element(p.lse.at(head.b, head.h, i), p.lse.dtype, lse);
  });
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
