// Where the chunks of linear attention lie, and what belongs to them. Lengths and borders come from
// the device unread by the host, so they are clamped here.
#pragma once

#include "cuda/chunk_products.cuh"
#include "cuda/linear.h"

namespace attn::cuda {

ATTN_DEVICE int64_t clamped(int64_t x, int64_t low, int64_t high) {
  return min64(max64(x, low), high);
}

// The L tokens of a row that belong to a sequence.
ATTN_DEVICE Range sequence_tokens(const LinearCall& p, int64_t sequence, int64_t L) {
  if (!p.cu_seqlens) return {0, L};
  const int64_t begin = clamped(p.cu_seqlens[sequence], 0, L);
  return {begin, clamped(p.cu_seqlens[sequence + 1], begin, L)};
}
// The same without padding.
ATTN_DEVICE Range live_keys(const LinearCall& p, int64_t sequence) {
  const Range keys = sequence_tokens(p, sequence, p.Lk);
  if (!p.key_lengths) return keys;
  return {keys.begin, clamped(p.key_lengths[sequence], keys.begin, keys.end)};
}
ATTN_DEVICE Range live_queries(const LinearCall& p, int64_t sequence) {
  return p.causal ? live_keys(p, sequence) : sequence_tokens(p, sequence, p.Lq);
}
ATTN_DEVICE bool no_keys_at_all(const LinearCall& p, int64_t sequence) {
  return !p.initial && live_keys(p, sequence).empty();
}

// The slot of a sequence's first chunk.
ATTN_DEVICE int64_t first_slot(const LinearCall& p, int64_t sequence, int64_t L) {
  if (!p.cu_seqlens) return sequence * p.blocks_of(L);
  return clamped(p.cu_seqlens[sequence], 0, L) / p.edge + sequence;
}

// Tokens [begin, live) of a chunk count, those up to `stop` are padding.
struct LinearChunk {
  int64_t sequence, b, slot, begin, live, stop;
  ATTN_DEVICE bool empty() const { return live <= begin; }
};

// The chunk of a slot, among the L tokens of a row. Slots that no sequence fills are empty up to
// `stop`.
ATTN_DEVICE LinearChunk chunk_of_slot(const LinearCall& p, int64_t slot, int64_t L, bool queries) {
  int64_t sequence;
  if (p.cu_seqlens) {
    int64_t low = 0, high = p.sequences;  // the last one whose first slot is at most `slot`
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_slot(p, middle, L) <= slot ? low : high) = middle;
    }
    sequence = low;
  } else {
    sequence = slot / p.blocks_of(L);
  }
  const Range tokens = sequence_tokens(p, sequence, L);
  const Range live = queries ? live_queries(p, sequence) : live_keys(p, sequence);
  const int64_t begin =
      min64(tokens.begin + (slot - first_slot(p, sequence, L)) * p.edge, tokens.end);
  const int64_t stop = min64(begin + p.edge, tokens.end);
  return {sequence, p.batch_row(sequence), slot, begin, clamped(live.end, begin, stop), stop};
}

ATTN_DEVICE int64_t key_head(const LinearCall& p, int64_t hs) { return hs / (p.Hs / p.Hk); }
ATTN_DEVICE int64_t value_head(const LinearCall& p, int64_t hs) { return hs / (p.Hs / p.Hv); }
ATTN_DEVICE Rows query_rows(const LinearCall& p, int64_t b, int64_t h, int64_t end) {
  return rows_of(p.query, b, h / (p.H / p.Hq), end, p.D);
}
ATTN_DEVICE Rows key_rows(const LinearCall& p, int64_t b, int64_t hs, int64_t end) {
  return rows_of(p.key, b, key_head(p, hs), end, p.D);
}
ATTN_DEVICE Rows value_rows(const LinearCall& p, int64_t b, int64_t hs, int64_t end) {
  return rows_of(p.value, b, value_head(p, hs), end, p.Dv);
}

// S [D][Dv] and z [D], and in the states of parts the decay since the part's beginning [D].
template <class T>
struct StateMemory {
  T* s;
  int64_t D, Dv;
  ATTN_DEVICE T* z() const { return s + D * Dv; }
  ATTN_DEVICE T* decay() const { return z() + D; }
  ATTN_DEVICE T* block(int64_t d0, int64_t c0) const { return s + d0 * Dv + c0; }
};
// Of a chunk's slot, or of a sequence where not causal.
template <class T>
ATTN_DEVICE StateMemory<T> chunk_state(const LinearCall& p, void* states, int64_t index,
                                       int64_t hs) {
  return {static_cast<T*>(states) + (index * p.Hs + hs) * p.chunk_state_size(), p.D, p.Dv};
}
template <class T>
ATTN_DEVICE StateMemory<T> chunk_state(const LinearCall& p, void* states, const LinearChunk& chunk,
                                       int64_t hs) {
  return chunk_state<T>(p, states, p.causal ? chunk.slot : chunk.sequence, hs);
}
template <class T>
ATTN_DEVICE StateMemory<T> part_state(const LinearCall& p, void* states, int64_t sequence,
                                      int64_t hs, int64_t part) {
  return {static_cast<T*>(states) + ((sequence * p.Hs + hs) * p.parts + part) * p.state_size(), p.D,
          p.Dv};
}

// How many of `edge` columns from `first` on there are, and how deep a product over them goes.
ATTN_DEVICE int columns_from(int64_t first, int64_t columns, int64_t edge) {
  return static_cast<int>(min64(columns - first, edge));
}
ATTN_DEVICE Depth depth_from(int64_t first, int64_t columns, int64_t edge) {
  return {(columns_from(first, columns, edge) + 15) / 16 * 16};
}

// What backward needs of a head's rows of a chunk, 0 for those that don't count.
template <class Arithmetic, class T>
ATTN_DEVICE void load_row_terms(const LinearCall& p, const LinearChunk& chunk, int64_t h, T* factor,
                                T* delta) {
  const int t = static_cast<int>(threadIdx.x);
  if (t >= Arithmetic::kEdge) return;
  const int64_t row = (chunk.b * p.H + h) * p.Lq + chunk.begin + t;
  const bool inside = chunk.begin + t < chunk.live;
  factor[t] = inside ? static_cast<const T*>(p.row_factor)[row] : T(0);
  delta[t] = inside ? static_cast<const T*>(p.row_delta)[row] : T(0);
}
// What factors are divided by where they go into 16 bits: the largest finite one, or 1. All threads
// of a warp take part.
template <class Arithmetic, class T>
ATTN_DEVICE T largest_factor(const T* factor) {
  if constexpr (!Arithmetic::kTensor) return 1;
  T largest = 0;
  for (int t = lane_in_warp(); t < Arithmetic::kEdge; t += 32) {
    const T x = std::fabs(factor[t]);
    if (x < T(1e30)) largest = std::fmax(largest, x);
  }
  largest = warp_maximum(largest);
  return largest > T(1e-30) ? largest : T(1);
}

// Stores the rows of a chunk that a block made, 0 for those that are padding.
template <class Arithmetic>
ATTN_DEVICE void store_chunk(ChunkSum<Arithmetic>& sum, const View& to, const LinearChunk& chunk,
                             int64_t h, int64_t column0, int64_t columns) {
  using T = typename Arithmetic::Sum;
  sum.for_each([&](int r, int c, T x) {
    if (chunk.begin + r < chunk.stop && column0 + c < columns)
      store_element(to.at(chunk.b, h, chunk.begin + r, column0 + c), to.dtype,
                    chunk.begin + r < chunk.live ? x : T(0));
  });
}

}  // namespace attn::cuda
