// Mask programs, and the tables built of them, against their definitions, pair by pair.
#include <functional>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "core/mask.h"
#include "cpu/block_table_builder.h"
#include "cpu/mask_leaves.h"

using attn::MaskArray;
using attn::MaskFrame;
using attn::MaskNode;
using attn::Range;

namespace {

struct Random {
  uint64_t state = 0x9E3779B97F4A7C15u;
  uint64_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
};

using Allowed = std::function<bool(int64_t b, int64_t h, int64_t i, int64_t j)>;

// A program with the arrays it points to, and what it means.
struct Case {
  int64_t Lq, Lk;
  std::vector<int64_t> program;
  std::vector<MaskArray> arrays;
  Allowed allowed;
};

constexpr int64_t kBatch = 2, kHeads = 2;

// Storage that outlives the cases.
struct Storage {
  std::vector<std::vector<int64_t>> numbers;
  std::vector<std::vector<uint8_t>> flags;
  std::vector<std::vector<int32_t>> indices;
  Storage() { numbers.reserve(64), flags.reserve(64), indices.reserve(64); }

  MaskArray add(std::vector<int64_t> values, std::vector<int64_t> sizes) {
    numbers.push_back(std::move(values));
    return {MaskArray::Type::kInt64, numbers.back().data(), std::move(sizes)};
  }
  MaskArray add_flags(std::vector<uint8_t> values, std::vector<int64_t> sizes) {
    flags.push_back(std::move(values));
    return {MaskArray::Type::kBool, flags.back().data(), std::move(sizes)};
  }
  MaskArray add_indices(std::vector<int32_t> values, std::vector<int64_t> sizes) {
    indices.push_back(std::move(values));
    return {MaskArray::Type::kInt32, indices.back().data(), std::move(sizes)};
  }
};

Case band(Random& random, int64_t Lq, int64_t Lk) {
  const int64_t lower = random.below(3) ? -random.below(Lk + 9) : -attn::kUnbounded;
  const int64_t upper = random.below(3) ? random.below(Lk + 9) - 4 : attn::kUnbounded;
  const int64_t dilation = random.below(2) ? 1 : 1 + random.below(80);
  const int64_t phase = random.below(dilation), at_end = random.below(2);
  return {Lq,
          Lk,
          {attn::kBand, lower, upper, dilation, phase, at_end},
          {},
          [=](int64_t, int64_t, int64_t i, int64_t j) {
            const int64_t d = j - i - (at_end ? Lk - Lq : 0);
            return lower <= d && d <= upper && attn::modulo(d - phase, dilation) == 0;
          }};
}

Case documents(Random& random, Storage& storage, int64_t Lq, int64_t Lk) {
  std::vector<int64_t> ids(static_cast<size_t>(kBatch * Lk));
  for (int64_t& id : ids) id = random.below(3) - (random.below(9) == 0);
  if (random.below(2))
    for (int64_t b = 0; b < kBatch; ++b)
      for (int64_t j = 0; j < Lk; ++j) ids[b * Lk + j] = j / 70 + b;
  const int64_t at_end = random.below(2);
  const MaskArray array = storage.add(ids, {kBatch, Lk});
  return {Lq,
          Lk,
          {attn::kDocuments, 0, -1, at_end},
          {array},
          [=](int64_t b, int64_t, int64_t i, int64_t j) {
            const int64_t p = i + (at_end ? Lk - Lq : 0);
            return p >= 0 && p < Lk && ids[b * Lk + p] >= 0 && ids[b * Lk + p] == ids[b * Lk + j];
          }};
}

Case global(Random& random, Storage& storage, int64_t Lq, int64_t Lk) {
  const int64_t at_end = random.below(2), tokens = random.below(70);
  const std::vector<int64_t> positions{random.below(Lk), random.below(Lk), Lk + 5};
  const bool listed = random.below(2);
  const MaskArray array = storage.add(positions, {3});
  return {Lq,
          Lk,
          {attn::kGlobal, listed ? 0 : tokens, listed ? 0 : -1, at_end},
          {array},
          [=](int64_t, int64_t, int64_t i, int64_t j) {
            const int64_t p = i + (at_end ? Lk - Lq : 0);
            const auto is = [&](int64_t x) {
              if (!listed) return x < tokens;
              return x == positions[0] || x == positions[1] || x == positions[2];
            };
            return p >= 0 && (is(p) || is(j));
          }};
}

Case blocks(Random& random, Storage& storage, int64_t Lq, int64_t Lk) {
  const int64_t bq = 1 + random.below(100), bk = 1 + random.below(100);
  const int64_t nq = (Lq + bq - 1) / bq, nk = (Lk + bk - 1) / bk;
  std::vector<uint8_t> map(static_cast<size_t>(kHeads * nq * nk));
  for (uint8_t& allowed : map) allowed = random.below(2);
  const MaskArray array = storage.add_flags(map, {1, kHeads, nq, nk});
  return {
      Lq, Lk, {attn::kBlocks, 0, bq, bk}, {array}, [=](int64_t, int64_t h, int64_t i, int64_t j) {
        return map[(h * nq + i / bq) * nk + j / bk] != 0;
      }};
}

Case bits(Random& random, Storage& storage, int64_t Lq, int64_t Lk) {
  const int64_t words = (Lk + 63) / 64;
  std::vector<int64_t> map(static_cast<size_t>(kBatch * Lq * words));
  for (int64_t& word : map) word = static_cast<int64_t>(random.next());
  const MaskArray array = storage.add(map, {kBatch, 1, Lq, words});
  return {Lq, Lk, {attn::kBits, 0, Lk}, {array}, [=](int64_t b, int64_t, int64_t i, int64_t j) {
            return map[(b * Lq + i) * words + j / 64] >> (j % 64) & 1;
          }};
}

Case lengths(Random& random, Storage& storage, int64_t Lq, int64_t Lk) {
  const std::vector<int64_t> values{random.below(Lk + 1), Lk + 7};
  return {Lq,
          Lk,
          {attn::kLengths, 0},
          {storage.add(values, {kBatch})},
          [=](int64_t b, int64_t, int64_t, int64_t j) { return j < values[b]; }};
}

// Own lists for the rows of the batch, one for both heads, or one for each.
Case selected(Random& random, Storage& storage, int64_t Lq, int64_t Lk) {
  const int64_t bq = 1 + random.below(3) * 20, sizes[] = {16, 48, 64, 100},
                bk = sizes[random.below(4)];
  const int64_t nq = (Lq + bq - 1) / bq, nk = (Lk + bk - 1) / bk, chosen = 1 + random.below(3);
  const int64_t repeat = 1 + random.below(2), heads = kHeads / repeat;
  std::vector<int32_t> list(static_cast<size_t>(kBatch * heads * nq * chosen));
  for (int32_t& block : list) block = static_cast<int32_t>(random.below(nk + 1) - 1);
  const MaskArray array = storage.add_indices(list, {kBatch, heads, nq, chosen});
  return {Lq,
          Lk,
          {attn::kSelected, 0, repeat, bq, bk},
          {array},
          [=](int64_t b, int64_t h, int64_t i, int64_t j) {
            const int64_t row = ((b * heads + h / repeat) * nq + i / bq) * chosen;
            for (int64_t n = 0; n < chosen; ++n)
              if (list[row + n] == j / bk) return true;
            return false;
          }};
}

Case compressed(Random& random, int64_t Lq, int64_t Lk) {
  const int64_t stride = 1 + random.below(9), length = 1 + random.below(20);
  const int64_t positions = (Lk - 1) * stride + length + random.below(stride);
  return {Lq,
          Lk,
          {attn::kCompressed, length, stride, positions},
          {},
          [=](int64_t, int64_t, int64_t i, int64_t j) {
            return j * stride + length - 1 <= i + positions - Lq;
          }};
}

Case leaf(Random& random, Storage& storage, int64_t Lq, int64_t Lk) {
  switch (random.below(8)) {
    case 0:
      return documents(random, storage, Lq, Lk);
    case 1:
      return global(random, storage, Lq, Lk);
    case 2:
      return blocks(random, storage, Lq, Lk);
    case 3:
      return bits(random, storage, Lq, Lk);
    case 4:
      return lengths(random, storage, Lq, Lk);
    case 5:
      return selected(random, storage, Lq, Lk);
    case 6:
      return compressed(random, Lq, Lk);
    default:
      return band(random, Lq, Lk);
  }
}

// The number of array n of `part` among `offset` others. Which numbers are arrays, the opcode says.
std::vector<int64_t> moved(const Case& part, int64_t offset) {
  std::vector<int64_t> program = part.program;
  if (program[0] == attn::kBand || program[0] == attn::kCompressed) return program;
  const size_t at = program[0] == attn::kGlobal ? 2 : 1;
  if (program[at] >= 0) program[at] += offset;
  return program;
}

Case join(Random& random, const Case& whole, const Case& part) {
  Case joined = whole;
  const std::vector<int64_t> code = moved(part, static_cast<int64_t>(whole.arrays.size()));
  joined.program.insert(joined.program.end(), code.begin(), code.end());
  joined.arrays.insert(joined.arrays.end(), part.arrays.begin(), part.arrays.end());
  const bool both = random.below(2), complement = random.below(3) == 0;
  joined.program.push_back(both ? attn::kAnd : attn::kOr);
  if (complement) joined.program.push_back(attn::kNot);
  joined.allowed = [=, a = whole.allowed, b = part.allowed](int64_t n, int64_t h, int64_t i,
                                                            int64_t j) {
    const bool one = a(n, h, i, j), two = b(n, h, i, j);
    return complement != (both ? one && two : one || two);
  };
  return joined;
}

// The built table says the same, by rows and by columns; tiles that are not partial are marked so.
void check_table(const Case& c) {
  const MaskNode node = attn::read_mask_program(c.program, c.arrays);
  const attn::BlockTableArrays built = attn::build_block_table(*node, c.Lq, c.Lk);
  attn::Mask mask;
  mask.Lq = c.Lq, mask.Lk = c.Lk, mask.table = built.view();
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t i = 0; i < c.Lq; ++i)
        for (int64_t j0 : {int64_t{0}, int64_t{64}, c.Lk / 2, c.Lk - 1}) {
          if (j0 >= c.Lk) continue;
          uint64_t expected = 0;
          for (int64_t t = 0; t < attn::min64(64, c.Lk - j0); ++t)
            expected |= uint64_t{c.allowed(b, h, i, j0 + t)} << t;
          CHECK_EQ(mask.row_map(b, h, i, j0), expected);
        }
      for (int64_t q = 0; q < built.query_tiles; ++q)
        for (int64_t k = 0; k < built.key_tiles; ++k) {
          const Range rows{q * 64, attn::min64(c.Lq, q * 64 + 64)};
          const Range keys{k * 64, attn::min64(c.Lk, k * 64 + 64)};
          bool any = false, all = true;
          for (int64_t i = rows.begin; i < rows.end; ++i)
            for (int64_t j = keys.begin; j < keys.end; ++j) {
              any = any || c.allowed(b, h, i, j);
              all = all && c.allowed(b, h, i, j);
            }
          CHECK_EQ(mask.covers(b, {h, h + 1}, rows, keys), all);
          CHECK_EQ(mask.next_keys(b, {h, h + 1}, rows, keys.begin) == keys.begin, any);
          const Range seeing = mask.next_rows(b, h, keys.begin, {rows.begin, c.Lq}, 64);
          CHECK_EQ(seeing.begin == rows.begin && !seeing.empty(), any);
        }
    }
}

}  // namespace

TEST(mask_programs_mean_what_their_parts_mean) {
  Random random;
  for (int n = 0; n < 60; ++n) {
    Storage storage;
    const int64_t Lq = 1 + random.below(200), Lk = 1 + random.below(200);
    Case c = leaf(random, storage, Lq, Lk);
    for (int64_t parts = random.below(4); parts > 0; --parts)
      c = join(random, c, leaf(random, storage, Lq, Lk));
    check_table(c);
  }
}

TEST(mask_tables_are_leaves_too) {
  Random random;
  Storage storage;
  const Case c = blocks(random, storage, 150, 130);
  const attn::BlockTableArrays t =
      attn::build_block_table(*attn::read_mask_program(c.program, c.arrays), c.Lq, c.Lk);
  const auto entries = [](const std::vector<attn::TableEntry>& list) {
    return MaskArray{MaskArray::Type::kInt32, list.data(), {static_cast<int64_t>(list.size()), 2}};
  };
  Case stored = c;
  stored.arrays = {
      {MaskArray::Type::kInt64, t.row_start.data(), {t.batches, t.heads, t.query_tiles + 1}},
      entries(t.row_entries),
      {MaskArray::Type::kInt64, t.column_start.data(), {t.batches, t.heads, t.key_tiles + 1}},
      entries(t.column_entries),
      {MaskArray::Type::kInt64, t.maps.data(), {static_cast<int64_t>(t.maps.size()) / 64, 64}}};
  stored.program = {attn::kTableProgram, 0, 1, 2, 3, 4, c.Lq, c.Lk};
  check_table(stored);
  stored.program.push_back(attn::kNot);
  stored.allowed = [=](int64_t b, int64_t h, int64_t i, int64_t j) {
    return !c.allowed(b, h, i, j);
  };
  check_table(stored);
}

// Sequences begin and end inside of the tiles that the choice is kept by.
TEST(selected_blocks_inside_sequences) {
  Random random;
  for (int n = 0; n < 20; ++n) {
    Storage storage;
    const int64_t bk = 1 + random.below(40), length = 65 + random.below(40);
    std::vector<int32_t> list(static_cast<size_t>(length * 2));
    for (int32_t& block : list) block = static_cast<int32_t>(random.below(length / bk));
    Case c{2 * length, 2 * length, {attn::kSelected, 0, 1, 1, bk, attn::kPacked, 1, 1}, {}, {}};
    c.arrays = {storage.add_indices(list, {1, 1, length, 2}),
                storage.add({0, length, 2 * length}, {3})};
    c.allowed = [=](int64_t, int64_t, int64_t i, int64_t j) {
      if (i / length != j / length) return false;
      const int64_t row = 2 * (i % length), block = j % length / bk;
      return list[row] == block || list[row + 1] == block;
    };
    check_table(c);
  }
}

TEST(packed_masks_stay_inside_their_sequences) {
  Random random;
  for (int n = 0; n < 20; ++n) {
    Storage storage;
    std::vector<int64_t> q{0}, k{0};
    for (int s = 0; s < 5; ++s) {
      q.push_back(q.back() + random.below(90));
      k.push_back(k.back() + random.below(90));
    }
    q.push_back(q.back() + 1), k.push_back(k.back() + 70);
    const int64_t lower = -random.below(40), upper = random.below(40);
    Case c{q.back(), k.back(), {attn::kBand, lower, upper, 1, 0, 1, attn::kPacked, 0, 1}, {}, {}};
    c.arrays = {storage.add(q, {7}), storage.add(k, {7})};
    c.allowed = [=](int64_t, int64_t, int64_t i, int64_t j) {
      for (size_t s = 0; s < 6; ++s) {
        if (i < q[s] || i >= q[s + 1] || j < k[s] || j >= k[s + 1]) continue;
        const int64_t shift = (k[s + 1] - k[s]) - (q[s + 1] - q[s]);
        const int64_t distance = (j - k[s]) - (i - q[s]) - shift;
        return lower <= distance && distance <= upper;
      }
      return false;
    };
    check_table(c);
  }
}

TEST(malformed_programs_are_refused) {
  Storage storage;
  const std::vector<MaskArray> arrays{storage.add({0, 5, 3}, {3}), storage.add({1, 2}, {1, 2})};
  const std::vector<std::vector<int64_t>> programs{
      {},
      {99},
      {attn::kAnd},
      {attn::kNot},
      {attn::kBand, 0, 0, 1},
      {attn::kBand, 0, 0, 0, 0, 0},
      {attn::kBand, 0, 0, 1, 0, 0, attn::kBand, 0, 0, 1, 0, 0},
      {attn::kLengths, 7},
      {attn::kLengths, 1},
      {attn::kDocuments, 0, -1, 0},
      {attn::kBlocks, 0, 4, 4},
      {attn::kBand, 0, 0, 1, 0, 0, attn::kPacked, 0, 0},
      {attn::kSelected, 0, 1, 1, 4},
      {attn::kSelected, 0, 0, 1, 4},
      {attn::kCompressed, 0, 1, 9},
      {attn::kCompressed, 1, 1, -9},
      {attn::kNeighborhood, 4},
      {attn::kNeighborhood, 1, 5, 3, 2, 0},
      {attn::kTableProgram, 0, 0, 0, 0, 0, 3, 3}};
  for (const std::vector<int64_t>& program : programs) {
    bool refused = false;
    try {
      attn::read_mask_program(program, arrays);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}
