// Neighbourhoods in grids of one to three dimensions, flattened in row-major order (Hassani et al.
// 2023, arXiv:2204.07143; dilated: Hassani and Shi 2022, arXiv:2209.15001).
#include <stdexcept>

#include "cpu/mask_leaves.h"

namespace attn {

namespace {

// The coordinates first, first + step, ..., `count` of them.
struct Window {
  int64_t first, count, step;
  int64_t last() const { return first + (count - 1) * step; }
  bool has(int64_t x) const { return first <= x && x <= last() && (x - first) % step == 0; }
};

// Every dilation-th coordinate makes a group of its own. In it the window of a query reaches
// window / 2 to the left, and moves inwards at the edges; a causal one ends at the query, cut off
// at the edge.
Window window_of(const GridDimension& d, int64_t x) {
  const int64_t group = x % d.dilation, y = x / d.dilation;
  const int64_t length = (d.size - group + d.dilation - 1) / d.dilation;
  int64_t begin = max64(0, y - d.window + 1), end = y + 1;
  if (!d.causal) {
    begin = max64(0, min64(y - d.window / 2, length - d.window));
    end = begin + d.window;
  }
  return {group + begin * d.dilation, end - begin, d.dilation};
}

class Neighborhood final : public MaskExpression {
 public:
  explicit Neighborhood(const std::vector<GridDimension>& grid) : grid_(grid) {
    for (const GridDimension& d : grid) {
      if (d.window < 1 || d.dilation < 1 || d.size < 0 || d.window * d.dilation > d.size)
        throw std::invalid_argument(
            "mask: expected a neighborhood whose window * dilation is at most the grid's size");
      size_ *= d.size;
    }
    slice_ = size_ / grid[0].size;
    line_ = grid.back().size;
  }
  void check_sizes(int64_t Lq, int64_t Lk) const override {
    if (Lq != size_ || Lk != size_)
      throw std::invalid_argument("mask: expected " + std::to_string(size_) +
                                  " queries and keys for this neighborhood, got " +
                                  std::to_string(Lq) + " and " + std::to_string(Lk));
  }
  void classify(const MaskFrame& f, Range rows, TileSet& some, TileSet&) const override {
    int64_t first = grid_[0].size, last = 0;
    for (int64_t x = rows.begin / slice_; x * slice_ < rows.end; ++x) {
      const Window window = window_of(grid_[0], x);
      first = min64(first, window.first);
      last = max64(last, window.last());
    }
    some.insert(f.overlapping({first * slice_, (last + 1) * slice_}));
  }
  uint64_t row_map(const MaskFrame&, int64_t i, int64_t j0) const override {
    Window windows[3];
    const size_t dimensions = grid_.size();
    for (size_t d = dimensions; d-- > 0; i /= grid_[d].size)
      windows[d] = window_of(grid_[d], i % grid_[d].size);
    const Window& inner = windows[dimensions - 1];
    uint64_t map = 0;
    for (int64_t line = j0 / line_; line * line_ < min64(size_, j0 + 64); ++line) {
      bool seen = true;
      int64_t rest = line;
      for (size_t d = dimensions - 1; d-- > 0; rest /= grid_[d].size)
        seen = seen && windows[d].has(rest % grid_[d].size);
      if (seen) map |= line_map(inner, line * line_ - j0);
    }
    return map;
  }

 private:
  std::vector<GridDimension> grid_;
  int64_t size_ = 1;              // of the grid
  int64_t slice_ = 1, line_ = 1;  // positions per step of the first dimension, and in a line

  // The window's bits in a word whose bit `start` is the line's first key.
  static uint64_t line_map(const Window& window, int64_t start) {
    const int64_t begin = start + window.first, end = start + window.last() + 1;
    const uint64_t map = bits_between(begin, end);
    return window.step == 1 ? map : map & bits_by_step(modulo(begin, window.step), window.step);
  }
};

}  // namespace

MaskNode make_neighborhood(const std::vector<GridDimension>& grid) {
  return std::make_unique<Neighborhood>(grid);
}

}  // namespace attn
