// A mask as an expression: leaves that are rules or stored maps, joined by and, or, not. It says of
// whole tiles what it can, and of single pairs the rest; block_table_builder turns it into a table.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/mask.h"

namespace attn {

// One row of the batch, one head, sequences of Lq queries and Lk keys, and how keys are cut into
// tiles: tile t holds keys origin + 64 t .. origin + 64 t + 63, as far as they exist.
struct MaskFrame {
  int64_t b = 0, h = 0, Lq = 0, Lk = 0;
  int64_t tiles = 0, origin = 0;

  Range overlapping(Range keys) const;  // the tiles with some key of the range
  Range contained(Range keys) const;    // those with no existing key outside of it
};

class TileSet {
 public:
  explicit TileSet(int64_t tiles) : tiles_(tiles), words_((tiles + 63) / 64) {}
  void clear() { words_.assign(words_.size(), 0); }
  void insert(Range tiles);
  void keep(Range tiles);
  void complement();
  TileSet& operator&=(const TileSet& other);
  TileSet& operator|=(const TileSet& other);
  bool has(int64_t tile) const { return words_[tile / 64] >> (tile % 64) & 1; }
  int64_t next(int64_t tile) const;  // the first one from here on; the number of tiles if none
  int64_t tiles() const { return tiles_; }

 private:
  int64_t tiles_;
  std::vector<uint64_t> words_;
};

class MaskExpression {
 public:
  virtual ~MaskExpression() = default;

  // Sizes in batch rows and heads; 1 where it does not vary.
  virtual int64_t batches() const { return 1; }
  virtual int64_t heads() const { return 1; }
  // So many neighbouring heads, from a multiple of it on, are the same; 0: all are.
  virtual int64_t head_group() const { return heads() == 1 ? 0 : 1; }

  // Throws std::invalid_argument where what is stored does not fit sequences of these lengths.
  virtual void check_sizes(int64_t Lq, int64_t Lk) const = 0;

  // For 1 to 64 neighbouring queries: `some` gets every tile with an allowed pair, and maybe more;
  // `every` tiles whose pairs are all allowed, and maybe not all of them. Both come empty. What is
  // said about tiles without keys does not matter.
  virtual void classify(const MaskFrame& frame, Range rows, TileSet& some,
                        TileSet& every) const = 0;

  // Bit t: query i may see key j0 + t, j0 >= 0. Bits behind the last key may be anything.
  virtual uint64_t row_map(const MaskFrame& frame, int64_t i, int64_t j0) const = 0;

  // The row maps of 1 to 64 neighbouring queries.
  virtual void tile_maps(const MaskFrame& frame, Range rows, int64_t j0, uint64_t* maps) const {
    for (int64_t i = rows.begin; i < rows.end; ++i) *maps++ = row_map(frame, i, j0);
  }
};

using MaskNode = std::unique_ptr<const MaskExpression>;

// An array an expression refers to, dense: bool as uint8_t or int64_t. It is not copied.
struct MaskArray {
  enum class Type { kBool, kInt64, kInt32 };
  Type type = Type::kInt64;
  const void* data = nullptr;
  std::vector<int64_t> sizes;

  int64_t size(size_t d) const { return d < sizes.size() ? sizes[d] : 1; }
};

// The numbers of a program, as csrc/README.md explains them.
enum MaskOpcode : int64_t {
  kAnd,
  kOr,
  kNot,
  kPacked,
  kBand,
  kLengths,
  kBits,
  kDocuments,
  kGlobal,
  kBlocks,
  kNeighborhood,
  kTableProgram,
  kSelected,
  kCompressed,
};

// Reads a program. Throws std::invalid_argument for anything
// else; what is built refers to the arrays.
MaskNode read_mask_program(const std::vector<int64_t>& program,
                           const std::vector<MaskArray>& arrays);

}  // namespace attn
