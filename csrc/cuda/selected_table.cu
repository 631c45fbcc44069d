#include "cuda/selected_table.h"

#include "cuda/tile.cuh"

namespace attn::cuda {

// Bit t: query i sees key j0 + t, one of the keys of a block it chose.
ATTN_DEVICE uint64_t selected_keys(const SelectedTable& p, int64_t list, int64_t i, int64_t j0) {
  if (i >= p.Lq) return 0;
  const int32_t* blocks = p.indices + (list * p.query_blocks() + i / p.query_block) * p.per_row;
  uint64_t map = 0;
  for (int64_t n = 0; n < p.per_row; ++n) {
    const int64_t begin = blocks[n] * p.key_block - j0;
    map |= bits_between(begin, begin + p.key_block);
  }
  return map & bits_between(0, p.Lk - j0);
}

// A warp for each tile, whose lanes look at two queries each.
__global__ void __launch_bounds__(kThreads)
    selected_tiles_kernel(const __grid_constant__ SelectedTable p) {
  const int64_t tile = warp_item(), list = tile / p.tiles();
  if (list >= p.lists) return;
  const int64_t i0 = tile / p.key_tiles() % p.query_tiles() * kTableTile;
  const int64_t j0 = tile % p.key_tiles() * kTableTile;
  const uint64_t keys = bits_between(0, p.Lk - j0);
  uint64_t seeing = 0, full = 0;
  for (int first = 0; first < kTableTile; first += 32) {
    const int row = first + lane_in_warp();
    const uint64_t map = selected_keys(p, list, i0 + row, j0);
    if (p.cuts_tiles()) p.maps[tile * kTableTile + row] = map;
    seeing |= uint64_t{__ballot_sync(kWholeWarp, map != 0)} << first;
    full |= uint64_t{__ballot_sync(kWholeWarp, map == keys || i0 + row >= p.Lq)} << first;
  }
  if (lane_in_warp() != 0) return;
  const uint64_t partial = p.cuts_tiles() ? seeing != 0 : seeing;
  p.words[tile] = full == ~uint64_t{0} ? full : partial;
}

// Row n of a list's tiles, or column n.
struct TileLine {
  const uint64_t* words;
  int64_t step, count;

  ATTN_DEVICE TileLine(const SelectedTable& p, int64_t list, bool column, int64_t n)
      : words(p.words + list * p.tiles() + n * (column ? 1 : p.key_tiles())),
        step(column ? p.key_tiles() : 1),
        count(column ? p.query_tiles() : p.key_tiles()) {}
  ATTN_DEVICE uint64_t word(int64_t n) const { return n < count ? words[n * step] : 0; }
};

// A warp for each row and column counts its tiles.
__global__ void __launch_bounds__(kThreads)
    selected_counts_kernel(const __grid_constant__ SelectedTable p) {
  const int64_t rows = p.query_tiles(), lines = rows + p.key_tiles();
  const int64_t list = warp_item() / lines, n = warp_item() % lines;
  if (list >= p.lists) return;
  const TileLine line(p, list, n >= rows, n >= rows ? n - rows : n);
  int32_t count = 0;
  for (int64_t t = lane_in_warp(); t < line.count; t += 32) count += line.word(t) != 0;
  count = warp_sum(count);
  if (lane_in_warp() == 0) p.counts[warp_item()] = count;
}

// A warp for each row and column, and one for the end of either: where its entries begin, and they.
__global__ void __launch_bounds__(kThreads)
    selected_entries_kernel(const __grid_constant__ SelectedTable p) {
  const int64_t rows = p.query_tiles(), columns = p.key_tiles(), lines = rows + columns + 2;
  const int64_t list = warp_item() / lines, at = warp_item() % lines;
  if (list >= p.lists) return;
  const bool column = at > rows;
  const int64_t n = column ? at - rows - 1 : at, end = column ? columns : rows;
  const int32_t* counts = p.counts + list * (rows + columns) + (column ? rows : 0);
  int64_t before = 0;
  for (int64_t m = lane_in_warp(); m < n; m += 32) before += counts[m];
  const int64_t begin = list * p.capacity() + warp_sum(before);
  int64_t* starts = column ? p.column_start : p.row_start;
  for (int64_t head = lane_in_warp(); head < p.repeat; head += 32)
    starts[(list * p.repeat + head) * (end + 1) + n] = begin;
  if (n == end) return;

  const TileLine line(p, list, column, n);
  TableEntry* entries = (column ? p.column_entries : p.row_entries) + begin;
  for (int64_t first = 0; first < line.count; first += 32) {
    const int64_t t = first + lane_in_warp();
    const uint64_t word = line.word(t);
    const unsigned found = __ballot_sync(kWholeWarp, word != 0);
    const int32_t tile = static_cast<int32_t>(line.words + t * line.step - p.words);
    const int32_t map = word == ~uint64_t{0} ? -1 : p.cuts_tiles() ? tile : -2 - tile;
    if (word)
      entries[__popc(found & ((1u << lane_in_warp()) - 1))] = {static_cast<int32_t>(t), map};
    entries += __popc(found);
  }
}

void make_selected_table(const SelectedTable& p, Stream stream) {
  const int64_t lines = p.query_tiles() + p.key_tiles();
  launch(selected_tiles_kernel, blocks_of_warps(p.lists * p.tiles()), kThreads, 0, stream, p);
  launch(selected_counts_kernel, blocks_of_warps(p.lists * lines), kThreads, 0, stream, p);
  launch(selected_entries_kernel, blocks_of_warps(p.lists * (lines + 2)), kThreads, 0, stream, p);
}

}  // namespace attn::cuda
