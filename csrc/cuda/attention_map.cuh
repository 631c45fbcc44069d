// Attention maps: row statistics by tiles of queries, then the weights p = exp(s - lse) once more
// by tiles of keys, and what is made of them. Every number is summed in a fixed order.
#pragma once

#include "cuda/attention_map.h"
#include "cuda/attention_scores.cuh"

namespace attn::cuda {

template <class T>
using MapMemory = TileMemory<T, 4>;

// The denominator and the entropy of 64 queries in one visit of their keys. With m the maximum and
// l the denominator, -sum_j p_j log p_j = (sum_j e_j (m - s_j) + log l sum_j e_j) / l for
// e_j = exp(s_j - m): no term is negative.
template <class T>
struct RowEntropies {
  T maximum[kMicro];
  double denominator[kMicro], keys[kMicro];  // sum_j e_j, with and without the sink
  double spread[kMicro];                     // sum_j e_j (m - s_j)

  ATTN_DEVICE RowEntropies(const HeadScores<T>& head, int64_t i0, MapMemory<T>& memory) {
    const AttentionCall& p = head.p;
    const T sink =
        p.sinks ? load_element<T>(p.sinks.at(0, head.h, 0), p.sinks.dtype) : -infinity<T>();
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      maximum[r] = sink;
      denominator[r] = sink == -infinity<T>() ? 0 : 1;
      keys[r] = spread[r] = 0;
    }
    const Range range = head.keys_of_tile(i0);
    for (int64_t j0 = head.next_keys(i0, range.begin); j0 < range.end;
         j0 = head.next_keys(i0, j0 + kTile)) {
      const TileKind kind = head.map_tile(i0, j0, memory);
      if (kind == TileKind::kSkip) continue;
      T s[kMicro][kMicro], unused[kMicro][kMicro];
      row_products(s, head.query, i0, head.key, j0, memory);
      head.scores(s, unused, i0, j0, kind, memory);
      ATTN_UNROLL
      for (int r = 0; r < kMicro; ++r) add(r, s[r]);
      __syncthreads();  // the maps have been read
    }
  }

  ATTN_DEVICE void add(int r, const T (&s)[kMicro]) {
    const auto sum = [](T x, T y) { return x + y; };
    T top = maximum[r];
    ATTN_UNROLL
    for (int c = 0; c < kMicro; ++c) top = std::fmax(top, s[c]);
    top = across_columns(top, [](T x, T y) { return std::fmax(x, y); });
    const T base = top == -infinity<T>() ? 0 : top;
    T added = 0, added_spread = 0;
    ATTN_UNROLL
    for (int c = 0; c < kMicro; ++c) {
      const T e = std::exp(s[c] - base);
      added += e;
      added_spread += e == 0 ? T(0) : e * (base - s[c]);
    }
    const double risen = static_cast<double>(top) - static_cast<double>(maximum[r]);
    const double shrink = maximum[r] == top ? 1 : std::exp(-risen);
    spread[r] = keys[r] == 0 ? 0 : shrink * (spread[r] + risen * keys[r]);
    spread[r] += across_columns(added_spread, sum);
    added = across_columns(added, sum);
    keys[r] = keys[r] * shrink + added;
    denominator[r] = denominator[r] * shrink + added;
    maximum[r] = top;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_map_rows_kernel(const __grid_constant__ AttentionMapCall p) {
  ATTN_SHARED(shared);
  auto& memory = *reinterpret_cast<MapMemory<T>*>(shared);
  const int64_t tiles = tiles_over(p.Lq, kTile), list = blockIdx.x / tiles;
  const int64_t i0 = (tiles - 1 - blockIdx.x % tiles) * kTile;
  const HeadScores<T> head(p, list / p.Hq, list % p.Hq);
  const RowEntropies<T> rows(head, i0, memory);
  T* const lse = static_cast<T*>(p.row_lse) + list * p.Lq;
  T* const lse_low = lse + p.B * p.Hq * p.Lq;
  ATTN_UNROLL
  for (int r = 0; r < kMicro; ++r) {
    const int64_t i = i0 + thread_row() * kMicro + r;
    if (i >= p.Lq || thread_column() != 0) continue;
    const double l = rows.denominator[r], log_l = std::log(l);
    const T top = rows.maximum[r];
    const bool empty = l == 0, infinite = top == infinity<T>();
    // The weights of an empty row become 0.
    lse[i] = empty ? infinity<T>() : top;
    lse_low[i] = empty || infinite ? 0 : static_cast<T>(log_l);
    store_element(p.lse.at(head.b, head.h, i), p.lse.dtype,
                  empty      ? -infinity<double>()
                  : infinite ? infinity<double>()
                             : static_cast<double>(top) + log_l);
    store_element(p.entropy.at(head.b, head.h, i), p.entropy.dtype,
                  empty ? 0.0 : (rows.spread[r] + log_l * rows.keys[r]) / l);
  }
}

ATTN_DEVICE Bins query_bins(const AttentionMapCall& p) { return {p.Lq, max64(1, p.query_bins)}; }
ATTN_DEVICE Bins key_bins(const AttentionMapCall& p) { return {p.Lk, max64(1, p.key_bins)}; }

// The bins that positions [range.begin, range.end) lie in, and the part of one that they hold.
ATTN_DEVICE Range bins_of(const Bins& bins, Range range) {
  return {bins.of(range.begin), bins.of(range.end - 1) + 1};
}
ATTN_DEVICE Range part_of_bin(const Bins& bins, int64_t bin, Range range) {
  return {max64(range.begin, bins.begin(bin)), min64(range.end, bins.begin(bin + 1))};
}

// The key tiles of a chunk.
ATTN_DEVICE Range tiles_of_chunk(const AttentionMapCall& p, int64_t chunk) {
  const int64_t tiles = tiles_over(p.Lk, kTile);
  return {tiles * chunk / p.chunks, tiles * (chunk + 1) / p.chunks};
}

// The weights of one head's keys, a tile in shared memory at a time.
template <class T>
struct MapTiles {
  const AttentionMapCall& p;
  const HeadScores<T> head;
  const int64_t list, chunk;
  MapMemory<T>& memory;
  const T *lse, *lse_low;

  ATTN_DEVICE MapTiles(const AttentionMapCall& call, int64_t item, MapMemory<T>& shared)
      : p(call),
        head(call, item / call.chunks / call.Hq, item / call.chunks % call.Hq),
        list(item / call.chunks),
        chunk(item % call.chunks),
        memory(shared),
        lse(static_cast<const T*>(call.row_lse) + list * call.Lq),
        lse_low(lse + call.B * call.Hq * call.Lq) {}

  ATTN_DEVICE T& weight(int64_t row, int64_t key) const {
    return memory.weights[row * kPitch + key];
  }

  ATTN_DEVICE void run_keys(int64_t j0) const {
    const Range range = head.queries_of_tile(j0);
    double column = 0;
    for (int64_t i0 = head.next_queries(j0, range.begin, range.end); i0 < range.end;
         i0 = head.next_queries(j0, i0 + kTile, range.end)) {
      const TileKind kind = head.map_tile(i0, j0, memory);
      if (kind == TileKind::kSkip) continue;
      weigh(i0, j0, kind);
      __syncthreads();
      if (p.row_count > 0) {
        write_rows(i0, j0);
        __syncthreads();
      }
      const Range rows{i0, min64(i0 + kTile, p.Lq)}, keys{j0, min64(j0 + kTile, p.Lk)};
      sum_rows(rows);
      __syncthreads();
      column += sum_column(rows);
      if (p.query_bins > 0) add_to_bins(rows, keys);
      __syncthreads();
    }
    const int64_t j = j0 + threadIdx.x;
    if (threadIdx.x < kTile && j < p.Lk)
      store_element(p.column_sums.at(head.b, head.h, j), p.column_sums.dtype, column);
  }

 private:
  ATTN_DEVICE void weigh(int64_t i0, int64_t j0, TileKind kind) const {
    T s[kMicro][kMicro], unused[kMicro][kMicro];
    row_products(s, head.query, i0, head.key, j0, memory);
    head.scores(s, unused, i0, j0, kind, memory);
    ATTN_UNROLL
    for (int r = 0; r < kMicro; ++r) {
      const int row = thread_row() * kMicro + r;
      const bool inside = i0 + row < p.Lq;
      const T high = inside ? lse[i0 + row] : T(0), low = inside ? lse_low[i0 + row] : T(0);
      ATTN_UNROLL
      for (int c = 0; c < kMicro; ++c)
        weight(row, thread_column() * kMicro + c) =
            s[r][c] == -infinity<T>() ? T(0) : std::exp(s[r][c] - high - low);
    }
  }

  // Each warp looks for rows of the tile among 32 of those asked for at a time.
  ATTN_DEVICE void write_rows(int64_t i0, int64_t j0) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int64_t first = threadIdx.x - lane; first < p.row_count; first += kThreads) {
      const int64_t asked = first + lane < p.row_count ? p.rows[first + lane] : -1;
      const bool inside = i0 <= asked && asked < min64(i0 + kTile, p.Lq);
      const int row = inside ? static_cast<int>(asked - i0) : 0;
      for (unsigned found = __ballot_sync(kWholeWarp, inside); found; found &= found - 1) {
        const int source = __popc((found - 1) & ~found);  // the lowest bit's number
        const int from = __shfl_sync(kWholeWarp, row, source);
        T* const to =
            static_cast<T*>(p.weights.data) + (list * p.row_count + first + source) * p.Lk + j0;
        for (int key = lane; key < kTile && j0 + key < p.Lk; key += 32) to[key] = weight(from, key);
      }
    }
  }

  // The tile's rows of a query bin become their sum, in the first of them.
  ATTN_DEVICE void sum_rows(Range rows) const {
    const Bins bins = query_bins(p);
    const Range of_rows = bins_of(bins, rows);
    const int64_t items = (of_rows.end - of_rows.begin) * kTile;
    for (int64_t item = threadIdx.x; item < items; item += kThreads) {
      const int64_t key = item % kTile;
      const Range part = part_of_bin(bins, of_rows.begin + item / kTile, rows);
      T sum = 0;
      for (int64_t i = part.begin; i < part.end; ++i) sum += weight(i - rows.begin, key);
      weight(part.begin - rows.begin, key) = sum;
    }
  }

  ATTN_DEVICE double sum_column(Range rows) const {
    if (threadIdx.x >= kTile) return 0;
    const Bins bins = query_bins(p);
    const Range of_rows = bins_of(bins, rows);
    double sum = 0;
    for (int64_t bin = of_rows.begin; bin < of_rows.end; ++bin)
      sum += weight(part_of_bin(bins, bin, rows).begin - rows.begin, threadIdx.x);
    return sum;
  }

  ATTN_DEVICE void add_to_bins(Range rows, Range keys) const {
    const Bins of_queries = query_bins(p), of_keys = key_bins(p);
    const Range row_bins = bins_of(of_queries, rows), column_bins = bins_of(of_keys, keys);
    const int64_t columns = column_bins.end - column_bins.begin;
    const int64_t items = (row_bins.end - row_bins.begin) * columns;
    for (int64_t item = threadIdx.x; item < items; item += kThreads) {
      const int64_t q = row_bins.begin + item / columns, k = column_bins.begin + item % columns;
      const int64_t row = part_of_bin(of_queries, q, rows).begin - rows.begin;
      const Range part = part_of_bin(of_keys, k, keys);
      double sum = 0;
      for (int64_t j = part.begin; j < part.end; ++j) sum += weight(row, j - keys.begin);
      p.bin_partial[(list * p.bin_rows() + k + chunk) * p.query_bins + q] += sum;
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_map_tiles_kernel(const __grid_constant__ AttentionMapCall p) {
  ATTN_SHARED(shared);
  const MapTiles<T> tiles(p, blockIdx.x, *reinterpret_cast<MapMemory<T>*>(shared));
  const Range range = tiles_of_chunk(p, tiles.chunk);
  for (int64_t tile = range.begin; tile < range.end; ++tile) tiles.run_keys(tile * kTile);
}

// One thread per tile of the binned map adds what the chunks left, in order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_map_bins_kernel(const __grid_constant__ AttentionMapCall p) {
  const int64_t at = thread_item();
  const int64_t k = at % p.key_bins, q = at / p.key_bins % p.query_bins;
  const int64_t list = at / p.key_bins / p.query_bins;
  if (list >= p.B * p.Hq) return;
  const Bins of_queries = query_bins(p), of_keys = key_bins(p);
  const Range keys{of_keys.begin(k), of_keys.begin(k + 1)};
  double sum = 0;
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
    const Range tiles = tiles_of_chunk(p, chunk);
    if (tiles.begin * kTile < keys.end && keys.begin < tiles.end * kTile)
      sum += p.bin_partial[(list * p.bin_rows() + k + chunk) * p.query_bins + q];
  }
  const int64_t pairs = (of_queries.begin(q + 1) - of_queries.begin(q)) * (keys.end - keys.begin);
  store_element(p.binned.at(list / p.Hq, list % p.Hq, q, k), p.binned.dtype,
                sum / static_cast<double>(pairs));
}

template <class T>
void attention_map(const AttentionMapCall& p, Stream stream) {
  const int64_t lists = p.B * p.Hq;
  launch(attention_map_rows_kernel<T>, lists * tiles_over(p.Lq, kTile), kThreads,
         sizeof(MapMemory<T>), stream, p);
  if (p.Lk > 0)
    launch(attention_map_tiles_kernel<T>, lists * p.chunks, kThreads, sizeof(MapMemory<T>), stream,
           p);
  if (p.query_bins > 0 && p.key_bins > 0)
    launch(attention_map_bins_kernel<T>, blocks_of_threads(lists * p.query_bins * p.key_bins),
           kThreads, 0, stream, p);
}

}  // namespace attn::cuda
