// Attention backward of 16-bit elements on tensor cores, in two passes of one shape: a block owns
// 64 queries (dq) or 64 keys (dk and dv) of a head, 16 to a warp, whose rows of two inputs stay in
// shared memory, and tiles of 32 rows of the other side's inputs pass:
//   queries stay:  s = q k^T,  dp = dout v^T,  dq += dx k
//   keys stay:     s = k q^T,  dp = v dout^T,  dk += dx q,  dv += p dout     (s and dp transposed)
#pragma once

#include "cuda/attention_gradients.cuh"
#include "cuda/attention_tensor_scores.cuh"

namespace attn::cuda {

// Which gradients a block of the second pass sums: registers hold both of up to 128 columns.
enum class Sums { kQuery, kKeyAndValue, kKey, kValue };

template <int kColumns, Sums kSums>
struct BackwardShape {
  static constexpr RowsAre kRowsAre = kSums == Sums::kQuery ? RowsAre::kQueries : RowsAre::kKeys;
  static constexpr bool kQueriesStay = kSums == Sums::kQuery, kScores = kSums != Sums::kValue;
  static constexpr bool kValues = kSums == Sums::kValue || kSums == Sums::kKeyAndValue;
  static constexpr int kThreads = 128, kStaying = 64, kPassing = 32;
  static constexpr int kStages = kColumns <= 128 ? 2 : 1;
  static constexpr int kPassingTiles = kPassing / 8, kColumnTiles = kColumns / 8;
  static constexpr uint32_t kStayingBytes = SharedTile<kColumns>::bytes(kStaying);
  static constexpr uint32_t kPassingBytes = SharedTile<kColumns>::bytes(kPassing);
  static constexpr size_t kSharedBytes = 2 * kStayingBytes + 2 * kStages * kPassingBytes;
  static_assert(kSharedBytes <= kMostShared);
};

// The tiles in shared memory: of both sides, the factor of the scores (q or k) and that of dp (dout
// or v).
template <int kColumns, Sums kSums>
struct BackwardTiles {
  using Shape = BackwardShape<kColumns, kSums>;
  using Tile = SharedTile<kColumns>;
  static constexpr int kThreads = Shape::kThreads;

  unsigned char* shared;

  ATTN_DEVICE Tile staying(uint32_t which) const { return {shared, which * Shape::kStayingBytes}; }
  ATTN_DEVICE Tile passing(uint32_t stage, uint32_t which) const {
    return {shared, 2 * Shape::kStayingBytes + (2 * stage + which) * Shape::kPassingBytes};
  }

  ATTN_DEVICE void copy_staying(const Rows& scores, const Rows& weights, int64_t first) const {
    copy_rows<kThreads, Shape::kStaying>(staying(0), scores, first, has_chunks(scores));
    copy_rows<kThreads, Shape::kStaying>(staying(1), weights, first, has_chunks(weights));
    end_copy_group();
  }
  ATTN_DEVICE void copy_passing(uint32_t stage, const Rows& scores, const Rows& weights,
                                int64_t first) const {
    copy_rows<kThreads, Shape::kPassing>(passing(stage, 0), scores, first, has_chunks(scores));
    copy_rows<kThreads, Shape::kPassing>(passing(stage, 1), weights, first, has_chunks(weights));
    end_copy_group();
  }
  // Of what the thread has copied, and of what is summed over.
  template <Dtype kDtype>
  ATTN_DEVICE bool passing_nonfinite(uint32_t stage) const {
    bool found = false;
    if (Shape::kScores)
      found |= copied_nonfinite<kDtype, kThreads, Shape::kPassing>(passing(stage, 0));
    if (Shape::kValues)
      found |= copied_nonfinite<kDtype, kThreads, Shape::kPassing>(passing(stage, 1));
    return found;
  }
};

// What a warp sums for its 16 rows while tiles pass.
template <Dtype kDtype, int kColumns, Sums kSums>
struct WarpGradients {
  using Shape = BackwardShape<kColumns, kSums>;
  using Tiles = BackwardTiles<kColumns, kSums>;
  static constexpr int N = Shape::kPassingTiles, kNone = 1;
  using Scores = WarpScores<kDtype, 1, N, Shape::kRowsAre>;
  using Fragments = float[1][N][4];

  float score_sums[1][Shape::kScores ? Shape::kColumnTiles : kNone][4];  // dq or dk
  float value_sums[1][Shape::kValues ? Shape::kColumnTiles : kNone][4];  // dv
  float slope;

  ATTN_DEVICE WarpGradients() : slope(0) {
    set_zero(score_sums);
    set_zero(value_sums);
  }

  static ATTN_DEVICE int first_row() { return static_cast<int>(threadIdx.x) / 32 * 16; }

  // i0, j0: the first query and key of the tile, of which the warp has its rows. All lanes come.
  ATTN_DEVICE void add_tile(const HeadGradients<float>& head, const Tiles& tiles, uint32_t stage,
                            int64_t i0, int64_t j0, bool nonfinite) {
    const int own = static_cast<int>(made_anew(first_row()));
    const Scores scores(head, i0 + (Shape::kQueriesStay ? own : 0),
                        j0 + (Shape::kQueriesStay ? 0 : own));
    uint32_t seen[1][2];
    const TileKind kind = scores.map_tile(seen);
    if (kind == TileKind::kSkip) return;
    Fragments weights, ds;
    row_products<kDtype>(weights, tiles.staying(0), own, tiles.passing(stage, 0));
    if constexpr (Shape::kScores)
      row_products<kDtype>(ds, tiles.staying(1), own, tiles.passing(stage, 1));
    gradients(head, scores, weights, ds, seen, kind);
    const bool pair_by_pair = nonfinite && kind == TileKind::kPartial;
    if constexpr (Shape::kValues)
      add(value_sums, weights, seen, tiles.passing(stage, 1), pair_by_pair);
    if constexpr (Shape::kScores) add(score_sums, ds, seen, tiles.passing(stage, 0), pair_by_pair);
  }

 private:
  template <int kTiles>
  static ATTN_DEVICE void add(float (&sums)[1][kTiles][4], const Fragments& weights,
                              const uint32_t (&seen)[1][2], SharedTile<kColumns> rows,
                              bool pair_by_pair) {
    uint32_t packed[1][N][2];
    pack_weights<kDtype>(packed, weights);
    if (pair_by_pair)
      add_seen_rows<kDtype>(sums, packed, seen, rows);
    else
      add_weighted_rows<kDtype>(sums, packed, rows);
  }

  // From products to weights = z p, and from dp to dx = p (z dp - delta) * scale * (derivative of
  // the softcap). Both are 0 for pairs that don't count.
  ATTN_DEVICE void gradients(const HeadGradients<float>& head, const Scores& scores,
                             Fragments& weights, Fragments& ds, uint32_t (&seen)[1][2],
                             TileKind kind) {
    const AttentionCall& p = head.p;
    Fragments derivatives;
    scores.scores(weights, derivatives, seen, kind);
    uint32_t kept[1][2] = {{~0u, ~0u}};
    if (head.dropout.active()) scores.kept(kept);
    Scores::for_each(weights, [&](float& weight, int m, int n, int r, int c) {
      const int64_t i = scores.query(m, n, r, c);
      const bool inside = i < p.Lq;
      const float high = inside ? head.lse[i] : infinity<float>();
      const float low = inside ? head.lse_low[i] : 0;
      const float z = Scores::bit(kept, m, n, r, c) ? head.keep_scale : 0;
      const bool counts = weight != -infinity<float>();
      const float probability = counts ? fast_exp2((weight - high - low) * kLog2E) : 0;
      weight = counts ? z * probability : 0;
      if constexpr (Shape::kScores) {
        float& x = ds[m][n][2 * r + c];
        const float mean = inside ? head.delta[i] : 0;
        x = counts ? probability * (z * x - mean) : 0;
        if (kSums == Sums::kQuery && p.dalibi_slopes)
          slope += x * alibi_derivative(scores.alibi_distance(m, n, r, c));
        x = counts ? x * derivatives[m][n][2 * r + c] * head.scale : 0;
      }
    });
  }
};

// The sum over the block, of thread 0.
ATTN_DEVICE double block_sum(double value, unsigned char* shared, int threads) {
  auto* sums = reinterpret_cast<double*>(shared);
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; threadIdx.x == 0 && warp < threads / 32; ++warp) sum += sums[warp];
  return sum;
}

template <Dtype kDtype, int kColumns>
ATTN_DEVICE void tensor_backward_queries(const AttentionCall& p, unsigned char* shared) {
  using Shape = BackwardShape<kColumns, Sums::kQuery>;
  using Warp = WarpGradients<kDtype, kColumns, Sums::kQuery>;
  const BackwardTiles<kColumns, Sums::kQuery> tiles{shared};
  const int64_t blocks = tiles_over(p.Lq, Shape::kStaying), bh = blockIdx.x / blocks;
  const int64_t block = blocks - 1 - blockIdx.x % blocks, i0 = block * Shape::kStaying;
  const HeadGradients<float> head(p, bh / p.Hq, bh % p.Hq);
  const Range rows{i0, min64(i0 + Shape::kStaying, p.Lq)}, heads{head.h, head.h + 1};
  Warp warp;
  double slope = 0;
  const Range keys = head.keys_of(rows);
  int64_t j0 = head.next_keys(rows, keys.begin);
  if (j0 < keys.end) {
    tiles.copy_staying(head.query, head.grad_out, i0);
    tiles.copy_passing(0, head.key, head.value, j0);
  }
  for (uint32_t stage = 0; j0 < keys.end; stage = (stage + 1) % Shape::kStages) {
    const Range tile{j0, j0 + Shape::kPassing};
    const bool partial = p.bias || tile.end > p.Lk || !p.mask.covers(head.b, heads, rows, tile);
    const int64_t next = head.next_keys(rows, tile.end);
    wait_for_copies<0>();
    const bool nonfinite =
        __syncthreads_or(partial && tiles.template passing_nonfinite<kDtype>(stage));
    if (Shape::kStages == 2 && next < keys.end)
      tiles.copy_passing(stage ^ 1, head.key, head.value, next);
    warp.add_tile(head, tiles, stage, i0, j0, nonfinite);
    if (Shape::kStages == 1) __syncthreads();
    if (Shape::kStages == 1 && next < keys.end)
      tiles.copy_passing(stage, head.key, head.value, next);
    slope += warp.slope;
    warp.slope = 0;
    j0 = next;
  }
  ATTN_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int64_t i = i0 + Warp::first_row() + Warp::Scores::row(0, r);
    if (p.dq && i < p.Lq) store_row<kDtype>(p.dq, p.D, head.b, head.h, i, r, warp.score_sums[0], 1);
  }
  if (!p.dalibi_slopes) return;
  slope = block_sum(slope, shared, Shape::kThreads);
  if (threadIdx.x == 0) p.alibi_partial[bh * blocks + block] = slope;
}

// The keys that a block of the second pass owns: those from j0 on of a key head. Made anew where it
// is needed: sums fill the registers meanwhile.
struct KeyBlock {
  int64_t b, hkv, j0;

  ATTN_DEVICE KeyBlock(const AttentionCall& p, int rows) {
    const int64_t blocks = tiles_over(p.Lk, rows), index = made_anew(blockIdx.x);
    j0 = index % blocks * rows;
    hkv = index / blocks % p.Hkv;
    b = index / blocks / p.Hkv;
  }
};

template <Dtype kDtype, int kColumns, Sums kSums>
ATTN_DEVICE void tensor_backward_keys(const AttentionCall& p, unsigned char* shared) {
  using Shape = BackwardShape<kColumns, kSums>;
  using Warp = WarpGradients<kDtype, kColumns, kSums>;
  const BackwardTiles<kColumns, kSums> tiles{shared};
  Warp warp;
  uint32_t stage = 0;
  for (int g = 0; g < p.group(); ++g) {
    const KeyBlock block(p, Shape::kStaying);
    const int64_t b = block.b, h = block.hkv * p.group() + g, j0 = block.j0;
    const HeadGradients<float> head(p, b, h);
    const Range keys{j0, j0 + Shape::kStaying}, queries = head.queries_of_tile(j0);
    const Range heads{h, h + 1};
    if (g == 0) tiles.copy_staying(head.key, head.value, j0);
    int64_t i0 = head.next_queries(j0, queries.begin, queries.end);
    if (i0 < queries.end) tiles.copy_passing(stage, head.query, head.grad_out, i0);
    for (; i0 < queries.end; stage = (stage + 1) % Shape::kStages) {
      const Range rows{i0, min64(i0 + Shape::kPassing, p.Lq)};
      const bool partial = p.bias || keys.end > p.Lk || !p.mask.covers(b, heads, rows, keys);
      const int64_t next = head.next_queries(j0, i0 + Shape::kPassing, queries.end);
      wait_for_copies<0>();
      const bool nonfinite =
          __syncthreads_or(partial && tiles.template passing_nonfinite<kDtype>(stage));
      if (Shape::kStages == 2 && next < queries.end)
        tiles.copy_passing(stage ^ 1, head.query, head.grad_out, next);
      warp.add_tile(head, tiles, stage, i0, j0, nonfinite);
      if (Shape::kStages == 1) __syncthreads();
      if (Shape::kStages == 1 && next < queries.end)
        tiles.copy_passing(stage, head.query, head.grad_out, next);
      i0 = next;
    }
  }
  wait_for_copies<0>();
  const KeyBlock block(p, Shape::kStaying);
  ATTN_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int64_t j = block.j0 + Warp::first_row() + Warp::Scores::row(0, r);
    if (j >= p.Lk) continue;
    if constexpr (Shape::kScores) {
      if (p.dk) store_row<kDtype>(p.dk, p.D, block.b, block.hkv, j, r, warp.score_sums[0], 1);
    }
    if constexpr (Shape::kValues) {
      if (p.dv) store_row<kDtype>(p.dv, p.Dv, block.b, block.hkv, j, r, warp.value_sums[0], 1);
    }
  }
}

template <Dtype kDtype, int kColumns, Sums kSums>
__global__ void __launch_bounds__(BackwardShape<kColumns, kSums>::kThreads)
    attention_tensor_backward_kernel(const __grid_constant__ AttentionCall p) {
  if constexpr (kTensorCores) {
    ATTN_SHARED(shared);
    if constexpr (kSums == Sums::kQuery)
      tensor_backward_queries<kDtype, kColumns>(p, shared);
    else
      tensor_backward_keys<kDtype, kColumns, kSums>(p, shared);
  }
}

template <Dtype kDtype, int kColumns, Sums kSums>
bool launch_tensor_backward(const AttentionCall& p, Stream stream) {
  using Shape = BackwardShape<kColumns, kSums>;
  const auto kernel = attention_tensor_backward_kernel<kDtype, kColumns, kSums>;
  if (architecture_of(kernel) < 80) return false;
  const int64_t blocks = Shape::kQueriesStay ? p.Hq * tiles_over(p.Lq, Shape::kStaying)
                                             : p.Hkv * tiles_over(p.Lk, Shape::kStaying);
  launch(kernel, p.B * blocks, Shape::kThreads, Shape::kSharedBytes, stream, p);
  return true;
}

template <Dtype kDtype, int kColumns>
bool launch_tensor_backwards(const AttentionCall& p, Stream stream) {
  bool able = true;
  if (p.dq || p.dalibi_slopes)
    able = launch_tensor_backward<kDtype, kColumns, Sums::kQuery>(p, stream);
  if constexpr (kColumns <= 128) {
    if (able && (p.dk || p.dv))
      able = launch_tensor_backward<kDtype, kColumns, Sums::kKeyAndValue>(p, stream);
  } else {
    if (able && p.dk) able = launch_tensor_backward<kDtype, kColumns, Sums::kKey>(p, stream);
    if (able && p.dv) able = launch_tensor_backward<kDtype, kColumns, Sums::kValue>(p, stream);
  }
  return able;
}

template <Dtype kDtype>
bool attention_tensor_backward(const AttentionCall& p, Stream stream) {
  const int64_t columns = max64(p.D, p.Dv);
  if (columns <= 64) return launch_tensor_backwards<kDtype, 64>(p, stream);
  if (columns <= 128) return launch_tensor_backwards<kDtype, 128>(p, stream);
  return columns <= 256 && launch_tensor_backwards<kDtype, 256>(p, stream);
}

}  // namespace attn::cuda
