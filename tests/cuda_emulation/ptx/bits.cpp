// Bits: moves, selections, shifts, logic and fields.
#include <bit>

#include "lanes.h"

namespace ptx {

namespace {

struct Same {
  template <class T>
  T operator()(T a) const {
    return a;
  }
};
struct And {
  template <class T>
  T operator()(T a, T b) const {
    return a & b;
  }
};
struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return a | b;
  }
};
struct ExclusiveOr {
  template <class T>
  T operator()(T a, T b) const {
    return a ^ b;
  }
};
struct Not {
  template <class T>
  T operator()(T a) const {
    return ~a;
  }
};

// By 32 bits' worth of any number: beyond the width all bits are gone, but for the sign.
struct ShiftLeft {
  template <class T>
  T operator()(T a, uint32_t by) const {
    return by < 8 * sizeof(T) ? static_cast<T>(a << by) : 0;
  }
};
struct ShiftRight {
  template <class T>
  T operator()(T a, uint32_t by) const {
    if (by < 8 * sizeof(T)) return a >> by;
    return std::is_signed_v<T> && a < 0 ? -1 : 0;
  }
};

// The upper, or for a right shift the lower, half of two registers, shifted.
template <bool kLeft, bool kClamp>
struct FunnelShift {
  uint32_t operator()(uint32_t low, uint32_t high, uint32_t by) const {
    by = kClamp ? std::min(by, 32u) : by & 31;
    const uint64_t both = uint64_t{high} << 32 | low;
    return static_cast<uint32_t>(kLeft ? both << by >> 32 : both >> by);
  }
};

template <class T>
T field_mask(uint32_t length) {
  return length < 8 * sizeof(T) ? (T{1} << length) - 1 : ~T{0};
}

// The field of `length` bits of b, from `position` on, becomes a's.
struct InsertField {
  template <class T>
  T operator()(T a, T b, uint32_t position, uint32_t length) const {
    position &= 255, length &= 255;
    const T mask = ShiftLeft()(field_mask<T>(length), position);
    return (b & ~mask) | (ShiftLeft()(a, position) & mask);
  }
};

struct ExtractField {
  template <class T>
  T operator()(T a, uint32_t position, uint32_t length) const {
    using Bits = std::make_unsigned_t<T>;
    position &= 255, length &= 255;
    constexpr uint32_t kBits = 8 * sizeof(T);
    if (length == 0) return 0;
    const Bits mask = field_mask<Bits>(length);
    const Bits field = ShiftRight()(static_cast<Bits>(a), position) & mask;
    const uint32_t top = std::min(position + length - 1, kBits - 1);
    const bool negative = std::is_signed_v<T> && (static_cast<Bits>(a) >> top & 1);
    const Bits inside = position >= kBits ? Bits{0} : field_mask<Bits>(top - position + 1);
    return static_cast<T>(negative ? field | ~(mask & inside) : field);
  }
};

// Each byte of the result is one of 8, or, where bit 3 of its choice is set, that one's sign.
struct Permute {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t choices) const {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t result = 0;
    for (int n = 0; n < 4; ++n) {
      const uint32_t choice = choices >> 4 * n & 15;
      auto byte = static_cast<uint8_t>(bytes >> 8 * (choice & 7));
      if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
      result |= uint32_t{byte} << 8 * n;
    }
    return result;
  }
};

// Bit by bit, the truth table's entry of the bits of a, b and c.
struct Logic3 {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c, uint32_t truth) const {
    uint32_t result = 0;
    for (int n = 0; n < 8; ++n)
      if (truth >> n & 1) result |= (n & 4 ? a : ~a) & (n & 2 ? b : ~b) & (n & 1 ? c : ~c);
    return result;
  }
};

struct CountOnes {
  template <class T>
  uint32_t operator()(T a) const {
    return std::popcount(a);
  }
};
struct CountLeadingZeros {
  template <class T>
  uint32_t operator()(T a) const {
    return std::countl_zero(a);
  }
};
struct Reverse {
  template <class T>
  T operator()(T a) const {
    T result = 0;
    for (size_t n = 0; n < 8 * sizeof(T); ++n) result |= (a >> n & 1) << (8 * sizeof(T) - 1 - n);
    return result;
  }
};

template <class T>
void select(Warp& warp, const Instruction& in, uint32_t mask) {
  const T *a = lanes<T>(warp, in.of[1]), *b = lanes<T>(warp, in.of[2]);
  const uint32_t choice = predicate(warp, in.of[3]);
  T results[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) results[lane] = has(choice, lane) ? a[lane] : b[lane];
  put(warp, in.of[0], results, mask);
}

template <class F>
void logic_of_predicates(Warp& warp, const Instruction& in, uint32_t mask) {
  const uint32_t a = predicate(warp, in.of[1]), b = predicate(warp, in.of[2]);
  put_predicate(warp, in.of[0], F()(a, b), mask);
}

template <class F>
void logic_of_predicate(Warp& warp, const Instruction& in, uint32_t mask) {
  put_predicate(warp, in.of[0], F()(predicate(warp, in.of[1])), mask);
}

template <class Whole, class Part>
void split(Warp& warp, const Instruction& in, uint32_t mask) {
  constexpr size_t kParts = sizeof(Whole) / sizeof(Part);
  Whole whole[kLanes];
  memcpy(whole, lanes<Whole>(warp, in.of[kParts]), sizeof whole);
  for (size_t n = 0; n < kParts; ++n) {
    Part part[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      part[lane] = static_cast<Part>(whole[lane] >> 8 * sizeof(Part) * n);
    put(warp, in.of[n], part, mask);
  }
}

template <class Whole, class Part>
void join(Warp& warp, const Instruction& in, uint32_t mask) {
  constexpr size_t kParts = sizeof(Whole) / sizeof(Part);
  Whole whole[kLanes] = {};
  for (size_t n = 0; n < kParts; ++n)
    for (int lane = 0; lane < kLanes; ++lane)
      whole[lane] |= Whole{lanes<Part>(warp, in.of[1 + n])[lane]} << 8 * sizeof(Part) * n;
  put(warp, in.of[0], whole, mask);
}

template <class Whole, class Part>
void add_vectors(Operations& table) {
  constexpr size_t kParts = sizeof(Whole) / sizeof(Part);
  std::vector<Kind> parts(kParts, kOf<Part>);
  parts.push_back(kOf<Whole>);
  const std::string opcode = "mov" + bits_suffix<Whole>(), number = std::to_string(kParts);
  table[opcode + " split" + number] = {split<Whole, Part>, Flow::kNext, parts};
  std::vector<Kind> reversed(parts.rbegin(), parts.rend());
  table[opcode + " join" + number] = {join<Whole, Part>, Flow::kNext, reversed};
}

template <class Bits, class T>
void add_moves(Operations& table, const std::string& type) {
  add<Same, Bits, Bits>(table, "mov" + type);
  table["selp" + type] = {select<Bits>, Flow::kNext, {kOf<Bits>, kOf<Bits>, kOf<Bits>, kPredicate}};
}

template <class T>
void add_words(Operations& table) {
  const std::string bits = bits_suffix<T>();
  using Signed = std::make_signed_t<T>;
  add_moves<T, T>(table, bits);
  add_moves<T, T>(table, suffix<T>());
  add_moves<T, Signed>(table, suffix<Signed>());
  add<And, T, T, T>(table, "and" + bits);
  add<Or, T, T, T>(table, "or" + bits);
  add<ExclusiveOr, T, T, T>(table, "xor" + bits);
  add<Not, T, T>(table, "not" + bits);
  add<ShiftLeft, T, T, uint32_t>(table, "shl" + bits);
  add<ShiftRight, T, T, uint32_t>(table, "shr" + bits);
  add<ShiftRight, T, T, uint32_t>(table, "shr" + suffix<T>());
  add<ShiftRight, Signed, Signed, uint32_t>(table, "shr" + suffix<Signed>());
}

template <class T>
void add_fields(Operations& table) {
  const std::string bits = bits_suffix<T>();
  using Signed = std::make_signed_t<T>;
  add<InsertField, T, T, T, uint32_t, uint32_t>(table, "bfi" + bits);
  add<ExtractField, T, T, uint32_t, uint32_t>(table, "bfe" + suffix<T>());
  add<ExtractField, Signed, Signed, uint32_t, uint32_t>(table, "bfe" + suffix<Signed>());
  add<CountOnes, uint32_t, T>(table, "popc" + bits);
  add<CountLeadingZeros, uint32_t, T>(table, "clz" + bits);
  add<Reverse, T, T>(table, "brev" + bits);
}

void add_predicates(Operations& table) {
  const std::vector<Kind> two(2, kPredicate), three(3, kPredicate);
  table["and.pred"] = {logic_of_predicates<And>, Flow::kNext, three};
  table["or.pred"] = {logic_of_predicates<Or>, Flow::kNext, three};
  table["xor.pred"] = {logic_of_predicates<ExclusiveOr>, Flow::kNext, three};
  table["not.pred"] = {logic_of_predicate<Not>, Flow::kNext, two};
  table["mov.pred"] = {logic_of_predicate<Same>, Flow::kNext, two};
}

}  // namespace

void add_bits(Operations& table) {
  for_types<uint16_t, uint32_t, uint64_t>([&]<class T>(T) { add_words<T>(table); });
  for_types<uint32_t, uint64_t>([&]<class T>(T) { add_fields<T>(table); });
  add_moves<uint32_t, float>(table, ".f32");
  add_moves<uint64_t, double>(table, ".f64");
  add_vectors<uint32_t, uint16_t>(table);
  add_vectors<uint64_t, uint32_t>(table);
  add_vectors<uint64_t, uint16_t>(table);
  add_predicates(table);
  add<FunnelShift<true, false>, uint32_t, uint32_t, uint32_t, uint32_t>(table, "shf.l.wrap.b32");
  add<FunnelShift<false, false>, uint32_t, uint32_t, uint32_t, uint32_t>(table, "shf.r.wrap.b32");
  add<FunnelShift<true, true>, uint32_t, uint32_t, uint32_t, uint32_t>(table, "shf.l.clamp.b32");
  add<FunnelShift<false, true>, uint32_t, uint32_t, uint32_t, uint32_t>(table, "shf.r.clamp.b32");
  add<Permute, uint32_t, uint32_t, uint32_t, uint32_t>(table, "prmt.b32");
  add<Logic3, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>(table, "lop3.b32");
}

}  // namespace ptx
