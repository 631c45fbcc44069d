// What lanes of a warp do together, as the PTX ISA describes it: shuffles, votes, ldmatrix and
// mma.sync; and the barriers of a block.
#include "core/scalar.h"
#include "lanes.h"
#include "memory.h"

namespace ptx {

namespace {

enum class Shuffle { kUp, kDown, kXor, kIndex };

struct Source {
  int lane;
  bool in_range;
};

// `limits`: the last lane in bits 0 to 4, and the mask of the segment in bits 8 to 12.
template <Shuffle kMode>
Source source_of(int lane, uint32_t by, uint32_t limits) {
  const int operand = by & 31, clamp = limits & 31, segment = limits >> 8 & 31;
  const int first = lane & segment, last = first | (clamp & ~segment);
  if (kMode == Shuffle::kUp) return {lane - operand, lane - operand >= last};
  int from = first | (operand & ~segment);
  if (kMode == Shuffle::kDown) from = lane + operand;
  if (kMode == Shuffle::kXor) from = lane ^ operand;
  return {from, from <= last};
}

template <Shuffle kMode>
void shuffle(Warp& warp, const Instruction& in, uint32_t mask) {
  const uint32_t* values = lanes<uint32_t>(warp, in.of[2]);
  const uint32_t* by = lanes<uint32_t>(warp, in.of[3]);
  const uint32_t* limits = lanes<uint32_t>(warp, in.of[4]);
  uint32_t results[kLanes], in_range = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Source source = source_of<kMode>(lane, by[lane], limits[lane]);
    const int from = source.in_range ? source.lane : lane;
    if (has(mask, lane) && !has(mask, from))
      throw Fault("divergence: a shuffle from a lane that takes no part");
    results[lane] = values[from];
    in_range |= uint32_t{source.in_range} << lane;
  }
  put(warp, in.of[0], results, mask);
  put_predicate(warp, in.of[1], in_range, mask);
}

void ballot(Warp& warp, const Instruction& in, uint32_t mask) {
  uint32_t results[kLanes];
  for (uint32_t& result : results) result = predicate(warp, in.of[1]) & mask;
  put(warp, in.of[0], results, mask);
}

template <bool kAll>
void vote(Warp& warp, const Instruction& in, uint32_t mask) {
  const uint32_t votes = predicate(warp, in.of[1]) & mask;
  put_predicate(warp, in.of[0], (kAll ? votes == mask : votes != 0) ? kAllLanes : 0, mask);
}

void meet_only(Warp&, const Instruction&, uint32_t) {}

void ask_for_a_whole_warp(uint32_t mask) {
  if (mask != kAllLanes) throw Fault("divergence: a matrix instruction by a part of a warp");
}

// kCount matrices of 8 x 8 elements; lane n has the address of row n % 8 of matrix n / 8.
template <int kCount, bool kTransposed>
void load_matrices(Warp& warp, const Instruction& in, uint32_t mask) {
  ask_for_a_whole_warp(mask);
  uint64_t addresses[kLanes];
  get_addresses(warp, in.of[kCount], addresses);
  for (int m = 0; m < kCount; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row)
      memcpy(matrix[row], shared_at(warp, addresses[8 * m + row], 16, 8 * m + row), 16);
    uint32_t results[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int i = lane / 4, j = lane % 4 * 2;
      results[lane] = kTransposed ? matrix[j][i] | uint32_t{matrix[j + 1][i]} << 16
                                  : matrix[i][j] | uint32_t{matrix[i][j + 1]} << 16;
    }
    put(warp, in.of[m], results, mask);
  }
}

struct Position {
  int row, column;
};

// Of element i of a lane's fragments, two to a register, of mma.m16n8k16 with 16-bit elements.
Position position_in_a(int lane, int i) {
  const int row = lane / 4 + (i / 2 % 2 == 0 ? 0 : 8);
  return {row, lane % 4 * 2 + i % 2 + (i < 4 ? 0 : 8)};
}
Position position_in_b(int lane, int i) {
  return {lane % 4 * 2 + i % 2 + (i < 2 ? 0 : 8), lane / 4};
}
Position position_in_c(int lane, int i) {
  return {lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + i % 2};
}

template <class Decode>
float element(Warp& warp, const Place* fragment, int lane, int i) {
  const uint32_t pair = lanes<uint32_t>(warp, fragment[i / 2])[lane];
  return Decode()(static_cast<uint16_t>(pair >> 16 * (i % 2)));
}

// A sum of 16 products and the accumulator is rounded once; devices round in ways of their own.
template <class Decode>
void multiply_add(Warp& warp, const Instruction& in, uint32_t mask) {
  ask_for_a_whole_warp(mask);
  const Place *d = in.of, *a = d + 4, *b = a + 4, *c = b + 2;
  double left[16][16], right[16][8], sums[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const auto [row, column] = position_in_a(lane, i);
      left[row][column] = element<Decode>(warp, a, lane, i);
    }
    for (int i = 0; i < 4; ++i) {
      const auto [row, column] = position_in_b(lane, i);
      right[row][column] = element<Decode>(warp, b, lane, i);
    }
    for (int i = 0; i < 4; ++i) {
      const auto [row, column] = position_in_c(lane, i);
      sums[row][column] = lanes<float>(warp, c[i])[lane];
    }
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column)
        sums[row][column] += left[row][k] * right[k][column];
  for (int i = 0; i < 4; ++i) {
    float results[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto [row, column] = position_in_c(lane, i);
      results[lane] = static_cast<float>(sums[row][column]);
    }
    put(warp, d[i], results, mask);
  }
}

struct Float16 {
  float operator()(uint16_t bits) const { return attn::float16_to_float(bits); }
};
struct BFloat16 {
  float operator()(uint16_t bits) const { return attn::bfloat16_to_float(bits); }
};

constexpr Kind kWord = kOf<uint32_t>;

template <Shuffle kMode>
void add_shuffle(Operations& table, const std::string& mode) {
  table["shfl.sync." + mode + ".b32"] = {
      shuffle<kMode>, Flow::kMeet, {kWord, kPredicate, kWord, kWord, kWord, kWord}};
}

template <int kCount>
void add_load_matrices(Operations& table) {
  const std::string opcode = "ldmatrix.sync.aligned.m8n8.x" + std::to_string(kCount);
  std::vector<Kind> kinds(kCount, kWord);
  kinds.push_back(kAddress);
  table[opcode + ".shared.b16"] = {load_matrices<kCount, false>, Flow::kMeetWarp, kinds};
  table[opcode + ".trans.shared.b16"] = {load_matrices<kCount, true>, Flow::kMeetWarp, kinds};
}

template <class Decode>
void add_products(Operations& table, const std::string& type) {
  table["mma.sync.aligned.m16n8k16.row.col.f32" + type + type + ".f32"] = {
      multiply_add<Decode>, Flow::kMeetWarp, std::vector<Kind>(14, kWord)};
}

}  // namespace

void add_warp_operations(Operations& table) {
  add_shuffle<Shuffle::kUp>(table, "up");
  add_shuffle<Shuffle::kDown>(table, "down");
  add_shuffle<Shuffle::kXor>(table, "bfly");
  add_shuffle<Shuffle::kIndex>(table, "idx");
  table["vote.sync.ballot.b32"] = {ballot, Flow::kMeet, {kWord, kPredicate, kWord}};
  table["vote.sync.any.pred"] = {vote<false>, Flow::kMeet, {kPredicate, kPredicate, kWord}};
  table["vote.sync.all.pred"] = {vote<true>, Flow::kMeet, {kPredicate, kPredicate, kWord}};
  table["bar.warp.sync"] = {meet_only, Flow::kMeet, {kWord}};
  table["bar.sync"] = {nullptr, Flow::kBarrier, {kWord}};
  table["bar.red.or.pred"] = {nullptr, Flow::kBarrier, {kPredicate, kWord, kPredicate}};
  add_load_matrices<1>(table);
  add_load_matrices<2>(table);
  add_load_matrices<4>(table);
  add_products<Float16>(table, ".f16");
  add_products<BFloat16>(table, ".bf16");
}

}  // namespace ptx
