#include "cpu/mask_expression.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "cpu/mask_leaves.h"

namespace attn {

namespace {

int64_t floor_divide(int64_t n, int64_t positive) { return (n - modulo(n, positive)) / positive; }

class Not final : public MaskExpression {
 public:
  explicit Not(MaskNode part) : part_(std::move(part)) {}
  int64_t batches() const override { return part_->batches(); }
  int64_t heads() const override { return part_->heads(); }
  int64_t head_group() const override { return part_->head_group(); }
  void check_sizes(int64_t Lq, int64_t Lk) const override { part_->check_sizes(Lq, Lk); }
  void classify(const MaskFrame& frame, Range rows, TileSet& some, TileSet& every) const override {
    part_->classify(frame, rows, every, some);
    some.complement();
    every.complement();
  }
  uint64_t row_map(const MaskFrame& frame, int64_t i, int64_t j0) const override {
    return ~part_->row_map(frame, i, j0);
  }
  void tile_maps(const MaskFrame& frame, Range rows, int64_t j0, uint64_t* maps) const override {
    part_->tile_maps(frame, rows, j0, maps);
    for (int64_t r = 0; r < rows.end - rows.begin; ++r) maps[r] = ~maps[r];
  }

 private:
  MaskNode part_;
};

// Both connectives of two parts.
class Join final : public MaskExpression {
 public:
  Join(bool both, MaskNode a, MaskNode b) : both_(both), a_(std::move(a)), b_(std::move(b)) {
    batches_ = common("batch size", a_->batches(), b_->batches());
    heads_ = common("number of heads", a_->heads(), b_->heads());
  }
  int64_t batches() const override { return batches_; }
  int64_t heads() const override { return heads_; }
  int64_t head_group() const override { return std::gcd(a_->head_group(), b_->head_group()); }
  void check_sizes(int64_t Lq, int64_t Lk) const override {
    a_->check_sizes(Lq, Lk);
    b_->check_sizes(Lq, Lk);
  }
  void classify(const MaskFrame& frame, Range rows, TileSet& some, TileSet& every) const override {
    TileSet other_some(frame.tiles), other_every(frame.tiles);
    a_->classify(frame, rows, some, every);
    b_->classify(frame, rows, other_some, other_every);
    if (both_)
      some &= other_some, every &= other_every;
    else
      some |= other_some, every |= other_every;
  }
  uint64_t row_map(const MaskFrame& frame, int64_t i, int64_t j0) const override {
    const uint64_t map = a_->row_map(frame, i, j0);
    if (map == (both_ ? uint64_t{0} : ~uint64_t{0})) return map;
    const uint64_t other = b_->row_map(frame, i, j0);
    return both_ ? map & other : map | other;
  }
  void tile_maps(const MaskFrame& frame, Range rows, int64_t j0, uint64_t* maps) const override {
    uint64_t others[kTableTile];
    const int64_t n = rows.end - rows.begin;
    const uint64_t settled = both_ ? uint64_t{0} : ~uint64_t{0};
    a_->tile_maps(frame, rows, j0, maps);
    if (std::all_of(maps, maps + n, [=](uint64_t map) { return map == settled; })) return;
    b_->tile_maps(frame, rows, j0, others);
    for (int64_t r = 0; r < n; ++r) maps[r] = both_ ? maps[r] & others[r] : maps[r] | others[r];
  }

 private:
  static int64_t common(const char* what, int64_t a, int64_t b) {
    if (a != b && a != 1 && b != 1)
      throw std::invalid_argument(std::string("mask: expected parts of one ") + what + ", got " +
                                  std::to_string(a) + " and " + std::to_string(b));
    return a == 1 ? b : a;
  }

  bool both_;
  MaskNode a_, b_;
  int64_t batches_, heads_;
};

class Reader {
 public:
  Reader(const std::vector<int64_t>& program, const std::vector<MaskArray>& arrays)
      : program_(program), arrays_(arrays) {}

  MaskNode read() {
    std::vector<MaskNode> stack;
    const auto pop = [&] {
      if (stack.empty()) malformed();
      MaskNode node = std::move(stack.back());
      stack.pop_back();
      return node;
    };
    while (at_ < program_.size()) {
      const int64_t opcode = number();
      if (opcode == kNot) {
        stack.push_back(std::make_unique<Not>(pop()));
      } else if (opcode == kAnd || opcode == kOr) {
        MaskNode b = pop(), a = pop();
        stack.push_back(std::make_unique<Join>(opcode == kAnd, std::move(a), std::move(b)));
      } else if (opcode == kPacked) {
        const MaskArray &q = array(), &k = array();
        stack.push_back(make_packed(q, k, pop()));
      } else {
        stack.push_back(leaf(opcode));
      }
    }
    if (stack.size() != 1) malformed();
    return std::move(stack[0]);
  }

 private:
  const std::vector<int64_t>& program_;
  const std::vector<MaskArray>& arrays_;
  size_t at_ = 0;

  [[noreturn]] static void malformed() {
    throw std::invalid_argument("block_table: expected a mask program, got a malformed one");
  }

  int64_t number() {
    if (at_ >= program_.size()) malformed();
    return program_[at_++];
  }
  const MaskArray& array() {
    const int64_t n = number();
    if (n < 0 || n >= static_cast<int64_t>(arrays_.size())) malformed();
    return arrays_[static_cast<size_t>(n)];
  }
  const MaskArray* optional_array() {
    if (number() < 0) return nullptr;
    --at_;
    return &array();
  }
  // Braces evaluate their elements in order; the arguments of a call need not be.
  MaskNode leaf(int64_t opcode) {
    switch (opcode) {
      case kBand: {
        const int64_t n[5] = {number(), number(), number(), number(), number()};
        return make_band(n[0], n[1], n[2], n[3], n[4] != 0);
      }
      case kLengths:
        return make_lengths(array());
      case kBits: {
        const MaskArray& words = array();
        return make_bits(words, number());
      }
      case kDocuments: {
        const MaskArray& ids = array();
        const MaskArray* query_ids = optional_array();
        return make_documents(ids, query_ids, number() != 0);
      }
      case kGlobal: {
        const int64_t tokens = number();
        const MaskArray* positions = optional_array();
        return make_global(tokens, positions, number() != 0);
      }
      case kBlocks: {
        const MaskArray& map = array();
        const int64_t n[2] = {number(), number()};
        return make_blocks(map, n[0], n[1]);
      }
      case kNeighborhood:
        return neighborhood();
      case kTableProgram: {
        const MaskArray* parts[5];
        for (const MaskArray*& part : parts) part = &array();
        const int64_t n[2] = {number(), number()};
        return make_table(parts, n[0], n[1]);
      }
      case kSelected: {
        const MaskArray& indices = array();
        const int64_t n[3] = {number(), number(), number()};
        return make_selected(indices, n[0], n[1], n[2]);
      }
      case kCompressed: {
        const int64_t n[3] = {number(), number(), number()};
        return make_compressed(n[0], n[1], n[2]);
      }
      default:
        malformed();
    }
  }
  MaskNode neighborhood() {
    const int64_t dimensions = number();
    if (dimensions < 1 || dimensions > 3) malformed();
    std::vector<GridDimension> grid(static_cast<size_t>(dimensions));
    for (GridDimension& d : grid) {
      d.size = number();
      d.window = number();
      d.dilation = number();
      d.causal = number() != 0;
    }
    return make_neighborhood(grid);
  }
};

}  // namespace

Range MaskFrame::overlapping(Range keys) const {
  keys = {max64(keys.begin, 0), min64(keys.end, Lk)};
  if (keys.empty()) return {0, 0};
  return {max64(0, floor_divide(keys.begin - origin, kTableTile)),
          min64(tiles, floor_divide(keys.end - 1 - origin, kTableTile) + 1)};
}

Range MaskFrame::contained(Range keys) const {
  keys = {max64(keys.begin, 0), min64(keys.end, Lk)};
  if (keys.empty()) return {0, 0};
  return {keys.begin == 0 ? 0 : max64(0, floor_divide(keys.begin - 1 - origin, kTableTile) + 1),
          keys.end == Lk ? tiles : min64(tiles, floor_divide(keys.end - origin, kTableTile))};
}

void TileSet::insert(Range tiles) {
  for (int64_t w = max64(0, tiles.begin) / 64; w * 64 < min64(tiles.end, tiles_); ++w)
    words_[w] |= bits_between(tiles.begin - w * 64, tiles.end - w * 64);
}

void TileSet::keep(Range tiles) {
  for (int64_t w = 0; w * 64 < tiles_; ++w)
    words_[w] &= bits_between(tiles.begin - w * 64, tiles.end - w * 64);
}

void TileSet::complement() {
  for (uint64_t& word : words_) word = ~word;
}

TileSet& TileSet::operator&=(const TileSet& other) {
  for (size_t w = 0; w < words_.size(); ++w) words_[w] &= other.words_[w];
  return *this;
}

TileSet& TileSet::operator|=(const TileSet& other) {
  for (size_t w = 0; w < words_.size(); ++w) words_[w] |= other.words_[w];
  return *this;
}

int64_t TileSet::next(int64_t tile) const {
  for (; tile < tiles_; tile = (tile / 64 + 1) * 64)
    if (const uint64_t rest = words_[tile / 64] >> (tile % 64))
      return min64(tiles_, tile + __builtin_ctzll(rest));
  return tiles_;
}

MaskNode read_mask_program(const std::vector<int64_t>& program,
                           const std::vector<MaskArray>& arrays) {
  return Reader(program, arrays).read();
}

}  // namespace attn
