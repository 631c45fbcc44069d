// The scores of a warp's rows with one tile, in the fragments of tensor cores.
#pragma once

#include "cuda/attention_scores.cuh"
#include "cuda/tensor_tile.cuh"

namespace attn::cuda {

constexpr float kLog2E = 1.4426950408889634f;

// tanh to about 1e-7, absolute.
ATTN_DEVICE float fast_tanh(float x) {
  return 1 - 2 * fast_reciprocal(1 + fast_exp2(2 * kLog2E * x));
}

// What the rows of a product of a warp are; its columns are the other.
enum class RowsAre { kQueries, kKeys };

// Products of 16 * M rows with 8 * N columns: the queries from i0 on, which are rows of `head`, and
// the keys from j0 on. A lane has the rows 16 m + 8 r + g and the columns 8 n + 2 t + c, as element
// 2 r + c of fragment (m, n). Its bits of one row are a word, of which bit 2 n + c belongs to
// column (n, c).
template <Dtype kDtype, int M, int N, RowsAre kRows, class Head = HeadScores<float>>
struct WarpScores {
  static constexpr bool kQueryRows = kRows == RowsAre::kQueries;
  static constexpr int kQueries = kQueryRows ? 16 * M : 8 * N;
  static constexpr int kKeys = kQueryRows ? 8 * N : 16 * M;
  static_assert(kKeys <= 64 && kQueries <= 32 && 32 % kQueries == 0);
  using Fragments = float[M][N][4];
  using Bits = uint32_t[M][2];

  const Head& head;
  const AttentionCall& p;
  int64_t i0, j0;

  ATTN_DEVICE WarpScores(const Head& of_head, int64_t first_query, int64_t first_key)
      : head(of_head), p(head.p), i0(first_query), j0(first_key) {}

  static ATTN_DEVICE int row(int m, int r) { return 16 * m + 8 * r + fragment_row(); }
  static ATTN_DEVICE int column(int n, int c) { return 8 * n + fragment_column() + c; }
  ATTN_DEVICE int64_t query(int m, int n, int r, int c) const {
    return i0 + (kQueryRows ? row(m, r) : column(n, c));
  }
  ATTN_DEVICE int64_t key(int m, int n, int r, int c) const {
    return j0 + (kQueryRows ? column(n, c) : row(m, r));
  }

  // Only the scale acts on products.
  ATTN_DEVICE bool is_plain() const {
    return !p.bias && !p.alibi_slopes && !p.sinks && head.softcap == 0;
  }

  // Calls visit(element, m, n, r, c) for every element of the lane.
  template <class Visit>
  static ATTN_DEVICE void for_each(Fragments& s, Visit visit) {
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) {
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e) visit(s[m][n][e], m, n, e / 2, e % 2);
      }
    }
  }

  static ATTN_DEVICE bool bit(const Bits& bits, int m, int n, int r, int c) {
    return bits[m][r] >> (2 * n + c) & 1;
  }

  // Which pairs see each other. All lanes come, and get the same answer.
  ATTN_DEVICE TileKind map_tile(Bits& seen) const {
    set_bits(seen, ~0u);
    const Range rows{i0, min64(i0 + kQueries, head.row_count())};
    if (rows.empty()) return TileKind::kSkip;
    if (!p.bias && j0 + kKeys <= p.Lk && head.covers(rows, {j0, j0 + kKeys}))
      return TileKind::kFull;
    const int64_t i = i0 + lane_in_warp() % kQueries;
    const uint64_t inside = bits_between(0, min64(kKeys, p.Lk - j0));
    const uint64_t map = i < head.row_count() && inside != 0 ? head.row_map(i, j0) & inside : 0;
    if (__ballot_sync(kWholeWarp, map != 0) == 0) return TileKind::kSkip;
    set_bits(seen, 0);
    distribute(map, seen);
    return TileKind::kPartial;
  }

  // Products become scores, -inf for pairs that don't count, as those are that a bias of -inf takes
  // out of `seen`. kUnit: what plain scores, of is_plain(), are multiplied with.
  ATTN_DEVICE void scores(Fragments& s, Bits& seen, TileKind kind, float unit) const {
    const float scale = head.scale * unit;
    for_each(s, [&](float& x, int, int, int, int) { x *= scale; });
    if (!is_plain()) {
      cap(s);
      add_terms(s, seen);
    }
    if (kind == TileKind::kFull) return;
    for_each(s, [&](float& x, int m, int n, int r, int c) {
      if (!bit(seen, m, n, r, c)) x = -infinity<float>();
    });
  }

  // The same with the softcap's derivatives.
  ATTN_DEVICE void scores(Fragments& s, Fragments& cap_derivatives, Bits& seen,
                          TileKind kind) const {
    for_each(s, [&](float& x, int m, int n, int r, int c) {
      x *= head.scale;
      cap_derivatives[m][n][2 * r + c] = 1;
    });
    if (head.softcap != 0) {
      cap(s);
      const float inverse = 1 / head.softcap;
      for_each(s, [&](float& x, int m, int n, int r, int c) {
        cap_derivatives[m][n][2 * r + c] = softcap_derivative(x * inverse, 1.0f);
      });
    }
    add_terms(s, seen);
    if (kind == TileKind::kFull) return;
    for_each(s, [&](float& x, int m, int n, int r, int c) {
      if (!bit(seen, m, n, r, c)) x = -infinity<float>();
    });
  }

  // The weights that dropout keeps. Four neighbouring keys share a draw.
  ATTN_DEVICE void kept(Bits& bits) const {
    set_bits(bits, 0);
    if constexpr (kQueryRows)
      draw_for_rows(bits);
    else
      draw_for_columns(bits);
  }

  ATTN_DEVICE float alibi_distance(int m, int n, int r, int c) const {
    if constexpr (Head::kGroup) return head.alibi_distance(query(m, n, r, c), key(m, n, r, c));
    const auto from = static_cast<float>(i0 + p.score.alibi_offset - j0);
    const int query = kQueryRows ? row(m, r) : column(n, c);
    const int key = kQueryRows ? column(n, c) : row(m, r);
    return std::fabs(from + static_cast<float>(query - key));
  }

 private:
  static ATTN_DEVICE void set_bits(Bits& bits, uint32_t value) {
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) bits[m][0] = bits[m][1] = value;
  }

  // Each lane has the row map of a query.
  static ATTN_DEVICE void distribute(uint64_t map, Bits& seen) {
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) {
        ATTN_UNROLL
        for (int x = 0; x < 2; ++x) {
          if constexpr (kQueryRows) {
            const uint64_t of_row = __shfl_sync(kWholeWarp, map, row(m, x));
            seen[m][x] |= static_cast<uint32_t>(of_row >> column(n, 0) & 3) << 2 * n;
          } else {
            const uint64_t of_column = __shfl_sync(kWholeWarp, map, column(n, x));
            ATTN_UNROLL
            for (int r = 0; r < 2; ++r)
              seen[m][r] |= static_cast<uint32_t>(of_column >> row(m, r) & 1) << (2 * n + x);
          }
        }
      }
    }
  }

  ATTN_DEVICE void cap(Fragments& s) const {
    if (head.softcap == 0) return;
    const float inverse = 1 / head.softcap;
    for_each(s, [&](float& x, int, int, int, int) {
      x = softcap_value(fast_tanh(x * inverse), head.softcap);
    });
  }

  ATTN_DEVICE void add_terms(Fragments& s, Bits& seen) const {
    if (p.alibi_slopes) {
      for_each(s, [&](float& x, int m, int n, int r, int c) {
        x += alibi_value(head.slope_of(query(m, n, r, c)), alibi_distance(m, n, r, c));
      });
    }
    if (p.bias) {
      for_each(s, [&](float& x, int m, int n, int r, int c) {
        if (!bit(seen, m, n, r, c)) return;
        const float added = bias(query(m, n, r, c), key(m, n, r, c));
        if (added == -infinity<float>()) seen[m][r] &= ~(1u << (2 * n + c));
        x += added;
      });
    }
  }

  ATTN_DEVICE float bias(int64_t i, int64_t j) const {
    const char* at = head.bias_at(i, j);
    return p.bias.dtype == Dtype::kFloat32 ? *reinterpret_cast<const float*>(at)
                                           : unpack<kDtype>(*reinterpret_cast<const uint16_t*>(at));
  }

  // The keys of a draw lie in two lanes: each draws for one of two rows.
  ATTN_DEVICE void draw_for_rows(Bits& bits) const {
    const int pair = fragment_column() / 4, own_row = fragment_column() / 2 % 2;
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      ATTN_ROLLED
      for (int n = 0; n < N; ++n) {
        const uint32_t drawn = head.keep4(i0 + row(m, own_row), (j0 + 8 * n) / 4 + pair);
        const uint32_t others = __shfl_xor_sync(kWholeWarp, drawn, 1);
        bits[m][0] |= ((own_row ? others : drawn) >> 2 * own_row & 3) << 2 * n;
        bits[m][1] |= ((own_row ? drawn : others) >> 2 * own_row & 3) << 2 * n;
      }
    }
  }

  // The keys of a draw are four rows, and lie in four lanes: each draws for one of two rows and
  // columns, of four.
  ATTN_DEVICE void draw_for_columns(Bits& bits) const {
    const int own = fragment_row() % 4;
    const int64_t h = made_anew(head.h);
    ATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      ATTN_ROLLED
      for (int n = 0; n < N; ++n) {
        const uint32_t drawn =
            head.dropout.keep4(head.b, h, i0 + column(n, own % 2), (j0 + row(m, own / 2)) / 4);
        ATTN_UNROLL
        for (int from = 0; from < 4; ++from) {
          const uint32_t keys = __shfl_sync(kWholeWarp, drawn, lane_in_warp() - 4 * own + 4 * from);
          bits[m][from / 2] |= (keys >> own & 1) << (2 * n + from % 2);
        }
      }
    }
  }
};

// sums += weights b, pair by pair, where rows and columns of the weights see each other.
template <Dtype kDtype, int M, int N, int K, int kColumns>
ATTN_DEVICE void add_seen_rows(float (&sums)[M][N][4], const uint32_t (&weights)[M][K][2],
                               const uint32_t (&seen)[M][2], SharedTile<kColumns> b) {
  ATTN_UNROLL
  for (int k = 0; k < K; ++k) {
    ATTN_ROLLED
    for (int row = 0; row < 8; ++row) {
      uint32_t weight[M][2];  // with bit 16 where the pair is seen
      ATTN_UNROLL
      for (int m = 0; m < M; ++m) {
        ATTN_UNROLL
        for (int r = 0; r < 2; ++r) {
          const uint32_t own = row % 2 ? weights[m][k][r] >> 16 : weights[m][k][r] & 0xffff;
          const uint32_t own_seen = seen[m][r] >> (2 * k + row % 2) & 1;
          weight[m][r] = __shfl_sync(kWholeWarp, own | own_seen << 16, row / 2, 4);
        }
      }
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) {
        const auto* pairs = reinterpret_cast<const uint32_t*>(b.chunk(8 * k + row, n));
        const uint32_t pair = pairs[fragment_column() / 2];
        ATTN_UNROLL
        for (int m = 0; m < M; ++m) {
          ATTN_UNROLL
          for (int e = 0; e < 4; ++e)
            if (weight[m][e / 2] >> 16)
              sums[m][n][e] +=
                  unpack<kDtype>(weight[m][e / 2]) * unpack<kDtype>(pair >> e % 2 * 16);
        }
      }
    }
  }
}

// The weights of a tile as a left operand.
template <Dtype kDtype, int M, int N>
ATTN_DEVICE void pack_weights(uint32_t (&packed)[M][N][2], const float (&weights)[M][N][4]) {
  ATTN_UNROLL
  for (int m = 0; m < M; ++m) {
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) {
      ATTN_UNROLL
      for (int r = 0; r < 2; ++r)
        packed[m][n][r] = pack<kDtype>(weights[m][n][2 * r], weights[m][n][2 * r + 1]);
    }
  }
}

// Stores one row of fragments, times a factor; `columns` of it exist.
template <Dtype kDtype, int N>
ATTN_DEVICE void store_row(const View& view, int64_t columns, int64_t b, int64_t h, int64_t i,
                           int r, const float (&fragments)[N][4], float factor) {
  char* const row = view.at(b, h, i);
  const int64_t step = view.stride[3] * 2;
  const bool in_pairs = step == 2 && columns % 2 == 0 && reinterpret_cast<uintptr_t>(row) % 4 == 0;
  ATTN_UNROLL
  for (int n = 0; n < N; ++n) {
    const int64_t column = 8 * n + fragment_column();
    if (column >= columns) continue;
    const uint32_t pair =
        pack<kDtype>(fragments[n][2 * r] * factor, fragments[n][2 * r + 1] * factor);
    char* const at = row + column * step;
    if (in_pairs) {
      *reinterpret_cast<uint32_t*>(at) = pair;
      continue;
    }
    *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(pair);
    if (column + 1 < columns)
      *reinterpret_cast<uint16_t*>(at + step) = static_cast<uint16_t>(pair >> 16);
  }
}

}  // namespace attn::cuda
