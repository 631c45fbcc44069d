// Numbers: sums, products, quotients, comparisons, and the functions of the special unit.
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>

#include "lanes.h"

namespace ptx {

namespace {

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return a + b;
  }
};
struct Subtract {
  template <class T>
  T operator()(T a, T b) const {
    return a - b;
  }
};
struct Multiply {
  template <class T>
  T operator()(T a, T b) const {
    return a * b;
  }
};
// Of integers by 0: all bits, as devices give; the value is unspecified.
struct Divide {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>) {
      if (b == 0) return static_cast<T>(-1);
      if (std::is_signed_v<T> && b == static_cast<T>(-1)) return -a;
    }
    return a / b;
  }
};
struct Remainder {
  template <class T>
  T operator()(T a, T b) const {
    return b == 0 ? a : a - Divide()(a, b) * b;
  }
};
// Of a number and a NaN, the number.
struct Least {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
    return std::min(a, b);
  }
};
struct Greatest {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
    return std::max(a, b);
  }
};
struct Absolute {
  template <class T>
  T operator()(T a) const {
    if constexpr (std::is_floating_point_v<T>) return std::fabs(a);
    return a < 0 ? -a : a;
  }
};
struct Negate {
  template <class T>
  T operator()(T a) const {
    return -a;
  }
};
struct MultiplyAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    if constexpr (std::is_floating_point_v<T>) return std::fma(a, b, c);
    return a * b + c;
  }
};

template <class T>
struct Twice {};
template <>
struct Twice<int16_t> {
  using Type = int32_t;
};
template <>
struct Twice<uint16_t> {
  using Type = uint32_t;
};
template <>
struct Twice<int32_t> {
  using Type = int64_t;
};
template <>
struct Twice<uint32_t> {
  using Type = uint64_t;
};
template <>
struct Twice<int64_t> {
  using Type = __int128;
};
template <>
struct Twice<uint64_t> {
  using Type = unsigned __int128;
};

struct MultiplyHigh {
  template <class T>
  T operator()(T a, T b) const {
    using Wide = typename Twice<T>::Type;
    return static_cast<T>(Wide{a} * Wide{b} >> (8 * sizeof(T)));
  }
};
struct MultiplyWide {
  template <class T>
  auto operator()(T a, T b) const {
    using Wide = typename Twice<T>::Type;
    return static_cast<Wide>(Wide{a} * Wide{b});
  }
};
struct MultiplyAddWide {
  template <class T>
  auto operator()(T a, T b, typename Twice<T>::Type c) const {
    return static_cast<decltype(c)>(MultiplyWide()(a, b) + c);
  }
};

struct MultiplyAddDown {
  float operator()(float a, float b, float c) const {
    volatile float x = a, y = b, z = c;
    std::fesetround(FE_DOWNWARD);
    volatile float result = std::fma(x, y, z);
    std::fesetround(FE_TONEAREST);
    return result;
  }
};

// The sign of the first argument, the rest of the second.
struct CopySign {
  template <class T>
  T operator()(T a, T b) const {
    return std::copysign(b, a);
  }
};

float flushed(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

// Those with ".approx" are the host's functions, exact to a rounding.
template <class F>
struct Flushing {
  float operator()(float x) const { return flushed(F()(flushed(x))); }
};
struct Exp2 {
  float operator()(float x) const { return std::exp2(x); }
};
struct Log2 {
  float operator()(float x) const { return std::log2(x); }
};
struct Tanh {
  float operator()(float x) const { return std::tanh(x); }
};
struct Reciprocal {
  template <class T>
  T operator()(T x) const {
    return 1 / x;
  }
};
struct SquareRoot {
  template <class T>
  T operator()(T x) const {
    return std::sqrt(x);
  }
};
struct ReciprocalRoot {
  float operator()(float x) const { return 1 / std::sqrt(x); }
};

double upper_half(double x) {
  uint64_t bits;
  memcpy(&bits, &x, 8);
  bits &= 0xffffffff00000000u;
  memcpy(&x, &bits, 8);
  return x;
}

// Reads and gives the upper 32 bits alone: what follows has to refine it.
struct RoughReciprocal {
  double operator()(double x) const {
    const double result = upper_half(1 / upper_half(x));
    return std::isnormal(result) || std::isinf(result) ? result : std::copysign(0.0, result);
  }
};

struct Equal {
  template <class T>
  bool operator()(T a, T b) const {
    return a == b;
  }
};
struct Less {
  template <class T>
  bool operator()(T a, T b) const {
    return a < b;
  }
};
struct LessOrEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return a <= b;
  }
};
struct Greater {
  template <class T>
  bool operator()(T a, T b) const {
    return a > b;
  }
};
struct GreaterOrEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return a >= b;
  }
};
struct NotEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return a < b || a > b;
  }
};
// True also where one of both is NaN.
template <class F>
struct OrUnordered {
  template <class T>
  bool operator()(T a, T b) const {
    return F()(a, b) || a != a || b != b;
  }
};
struct IsNaN {
  template <class T>
  bool operator()(T a, T b) const {
    return a != a || b != b;
  }
};
struct IsNumber {
  template <class T>
  bool operator()(T a, T b) const {
    return a == a && b == b;
  }
};

template <class T, class F>
void compare(Warp& warp, const Instruction& in, uint32_t mask) {
  const T *a = lanes<T>(warp, in.of[1]), *b = lanes<T>(warp, in.of[2]);
  uint32_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result |= uint32_t{F()(a[lane], b[lane])} << lane;
  put_predicate(warp, in.of[0], result, mask);
}

template <class T, class F>
void add_comparison(Operations& table, const std::string& opcode) {
  table[opcode] = {compare<T, F>, Flow::kNext, {kPredicate, kOf<T>, kOf<T>}};
}

template <class T>
void add_comparisons(Operations& table, const std::string& type) {
  add_comparison<T, Equal>(table, "setp.eq" + type);
  add_comparison<T, NotEqual>(table, "setp.ne" + type);
  add_comparison<T, Less>(table, "setp.lt" + type);
  add_comparison<T, LessOrEqual>(table, "setp.le" + type);
  add_comparison<T, Greater>(table, "setp.gt" + type);
  add_comparison<T, GreaterOrEqual>(table, "setp.ge" + type);
}

template <class T>
void add_unordered_comparisons(Operations& table) {
  const std::string type = suffix<T>();
  add_comparison<T, OrUnordered<Equal>>(table, "setp.equ" + type);
  add_comparison<T, OrUnordered<NotEqual>>(table, "setp.neu" + type);
  add_comparison<T, OrUnordered<Less>>(table, "setp.ltu" + type);
  add_comparison<T, OrUnordered<LessOrEqual>>(table, "setp.leu" + type);
  add_comparison<T, OrUnordered<Greater>>(table, "setp.gtu" + type);
  add_comparison<T, OrUnordered<GreaterOrEqual>>(table, "setp.geu" + type);
  add_comparison<T, IsNaN>(table, "setp.nan" + type);
  add_comparison<T, IsNumber>(table, "setp.num" + type);
}

template <class T>
void add_integers(Operations& table) {
  const std::string type = suffix<T>();
  add<Add, T, T, T>(table, "add" + type);
  add<Subtract, T, T, T>(table, "sub" + type);
  add<Multiply, T, T, T>(table, "mul.lo" + type);
  add<MultiplyHigh, T, T, T>(table, "mul.hi" + type);
  add<MultiplyAdd, T, T, T, T>(table, "mad.lo" + type);
  add<Divide, T, T, T>(table, "div" + type);
  add<Remainder, T, T, T>(table, "rem" + type);
  add<Least, T, T, T>(table, "min" + type);
  add<Greatest, T, T, T>(table, "max" + type);
  if constexpr (std::is_signed_v<T>) {
    add<Absolute, T, T>(table, "abs" + type);
    add<Negate, T, T>(table, "neg" + type);
  }
  if constexpr (sizeof(T) < 8) {
    using Wide = typename Twice<T>::Type;
    add<MultiplyWide, Wide, T, T>(table, "mul.wide" + type);
    add<MultiplyAddWide, Wide, T, T, Wide>(table, "mad.wide" + type);
  }
  add_comparisons<T>(table, type);
}

template <class T>
void add_floating(Operations& table) {
  const std::string type = suffix<T>();
  for (const std::string rounding : {"", ".rn"}) {
    add<Add, T, T, T>(table, "add" + rounding + type);
    add<Subtract, T, T, T>(table, "sub" + rounding + type);
    add<Multiply, T, T, T>(table, "mul" + rounding + type);
  }
  add<MultiplyAdd, T, T, T, T>(table, "fma.rn" + type);
  add<Divide, T, T, T>(table, "div.rn" + type);
  add<Reciprocal, T, T>(table, "rcp.rn" + type);
  add<SquareRoot, T, T>(table, "sqrt.rn" + type);
  add<Least, T, T, T>(table, "min" + type);
  add<Greatest, T, T, T>(table, "max" + type);
  add<Absolute, T, T>(table, "abs" + type);
  add<Negate, T, T>(table, "neg" + type);
  add<CopySign, T, T, T>(table, "copysign" + type);
  add_comparisons<T>(table, type);
  add_unordered_comparisons<T>(table);
}

}  // namespace

void add_arithmetic(Operations& table) {
  for_integers([&]<class T>(T) { add_integers<T>(table); });
  for_types<float, double>([&]<class T>(T) { add_floating<T>(table); });
  for_types<uint16_t, uint32_t, uint64_t>([&]<class T>(T) {
    add_comparison<T, Equal>(table, "setp.eq" + bits_suffix<T>());
    add_comparison<T, NotEqual>(table, "setp.ne" + bits_suffix<T>());
  });
  add<MultiplyAddDown, float, float, float, float>(table, "fma.rm.f32");
  add<Exp2, float, float>(table, "ex2.approx.f32");
  add<Flushing<Exp2>, float, float>(table, "ex2.approx.ftz.f32");
  add<Flushing<Log2>, float, float>(table, "lg2.approx.ftz.f32");
  add<Flushing<Reciprocal>, float, float>(table, "rcp.approx.ftz.f32");
  add<Flushing<ReciprocalRoot>, float, float>(table, "rsqrt.approx.ftz.f32");
  add<Tanh, float, float>(table, "tanh.approx.f32");
  add<RoughReciprocal, double, double>(table, "rcp.approx.ftz.f64");
}

}  // namespace ptx
