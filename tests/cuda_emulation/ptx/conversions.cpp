// cvt. Registers may be wider than what they hold: sources are cut, results extended.
#include <cmath>
#include <limits>

#include "core/scalar.h"
#include "lanes.h"

namespace ptx {

namespace {

template <class T>
uint64_t bits_of(T x) {
  if constexpr (std::is_integral_v<T>) return static_cast<uint64_t>(static_cast<int64_t>(x));
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof x);
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

template <class F, class To, class From>
void convert(Warp& warp, const Instruction& in, uint32_t mask) {
  uint64_t values[kLanes];
  get_bits(warp, in.of[1], values);
  for (uint64_t& value : values) value = bits_of<To>(F()(from_bits<From>(value)));
  put_bits(warp, in.of[0], values, mask);
}

template <class F, class To, class From>
void add_conversion(Operations& table, const std::string& opcode) {
  table[opcode] = {convert<F, To, From>, Flow::kNext, {{sizeof(To), true}, {sizeof(From), true}}};
}

template <class To>
struct Cast {
  template <class From>
  To operator()(From x) const {
    return static_cast<To>(x);
  }
};

struct ToNearest {
  template <class T>
  T operator()(T x) const {
    return std::nearbyint(x);
  }
};
struct ToZero {
  template <class T>
  T operator()(T x) const {
    return std::trunc(x);
  }
};
struct Down {
  template <class T>
  T operator()(T x) const {
    return std::floor(x);
  }
};
struct Up {
  template <class T>
  T operator()(T x) const {
    return std::ceil(x);
  }
};

// Clamped to the integer's range; NaN becomes 0.
template <class Round, class To>
struct ToInteger {
  template <class From>
  To operator()(From x) const {
    using Limits = std::numeric_limits<To>;
    x = Round()(x);
    if (x != x) return 0;
    if (x <= static_cast<From>(Limits::min())) return Limits::min();
    if (x >= static_cast<From>(Limits::max())) return Limits::max();
    return static_cast<To>(x);
  }
};

struct Saturate {
  float operator()(float x) const { return x > 0 ? std::fmin(x, 1.0f) : 0.0f; }
};

struct ToFloat16 {
  uint16_t operator()(float x) const { return attn::float_to_float16(x); }
};
struct FromFloat16 {
  float operator()(uint16_t x) const { return attn::float16_to_float(x); }
};
struct ToBFloat16 {
  uint16_t operator()(float x) const { return attn::float_to_bfloat16(x); }
};
struct FromBFloat16 {
  float operator()(uint16_t x) const { return attn::bfloat16_to_float(x); }
};

// The first source becomes the upper half.
template <class F>
struct Pair {
  uint32_t operator()(float high, float low) const { return uint32_t{F()(high)} << 16 | F()(low); }
};

template <class To>
void add_to_integer(Operations& table) {
  const std::string to = suffix<To>();
  for_types<int8_t, uint8_t, int16_t, uint16_t, int32_t, uint32_t, int64_t, uint64_t>(
      [&]<class From>(From) {
        add_conversion<Cast<To>, To, From>(table, "cvt" + to + suffix<From>());
      });
  for_types<float, double>([&]<class From>(From) {
    const std::string both = to + suffix<From>();
    add_conversion<ToInteger<ToNearest, To>, To, From>(table, "cvt.rni" + both);
    add_conversion<ToInteger<ToZero, To>, To, From>(table, "cvt.rzi" + both);
    add_conversion<ToInteger<Down, To>, To, From>(table, "cvt.rmi" + both);
    add_conversion<ToInteger<Up, To>, To, From>(table, "cvt.rpi" + both);
  });
}

template <class To>
void add_to_floating(Operations& table) {
  const std::string to = suffix<To>();
  for_types<int8_t, uint8_t, int16_t, uint16_t, int32_t, uint32_t, int64_t, uint64_t>(
      [&]<class From>(From) {
        add_conversion<Cast<To>, To, From>(table, "cvt.rn" + to + suffix<From>());
      });
  add_conversion<ToNearest, To, To>(table, "cvt.rni" + to + to);
  add_conversion<ToZero, To, To>(table, "cvt.rzi" + to + to);
  add_conversion<Down, To, To>(table, "cvt.rmi" + to + to);
  add_conversion<Up, To, To>(table, "cvt.rpi" + to + to);
}

}  // namespace

void add_conversions(Operations& table) {
  for_types<int8_t, uint8_t, int16_t, uint16_t, int32_t, uint32_t, int64_t, uint64_t>(
      [&]<class To>(To) { add_to_integer<To>(table); });
  for_types<float, double>([&]<class To>(To) { add_to_floating<To>(table); });
  add_conversion<Cast<double>, double, float>(table, "cvt.f64.f32");
  add_conversion<Cast<float>, float, double>(table, "cvt.rn.f32.f64");
  add_conversion<Saturate, float, float>(table, "cvt.sat.f32.f32");
  add_conversion<FromFloat16, float, uint16_t>(table, "cvt.f32.f16");
  add_conversion<FromBFloat16, float, uint16_t>(table, "cvt.f32.bf16");
  add_conversion<ToFloat16, uint16_t, float>(table, "cvt.rn.f16.f32");
  add_conversion<ToBFloat16, uint16_t, float>(table, "cvt.rn.bf16.f32");
  add<Pair<ToFloat16>, uint32_t, float, float>(table, "cvt.rn.f16x2.f32");
  add<Pair<ToBFloat16>, uint32_t, float, float>(table, "cvt.rn.bf16x2.f32");
}

}  // namespace ptx
