// core/scalar.h: every half and bfloat16, and what lies between them.
#include <cmath>
#include <cstdint>
#include <limits>

#include "check.h"
#include "core/scalar.h"

namespace {

// A number of `exponent_bits` and `mantissa_bits` below its sign, by the definition of IEEE 754.
double value_of(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
  const int top = (1 << exponent_bits) - 1, bias = top / 2;
  if (exponent == top) return mantissa ? std::nan("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign *
         std::ldexp(mantissa + std::ldexp(1, mantissa_bits), exponent - bias - mantissa_bits);
}

struct Half {
  static constexpr int kExponentBits = 5, kMantissaBits = 10;
  static float to_float(uint16_t bits) { return attn::float16_to_float(bits); }
  static uint16_t from_float(float x) { return attn::float_to_float16(x); }
};
struct BFloat {
  static constexpr int kExponentBits = 8, kMantissaBits = 7;
  static float to_float(uint16_t bits) { return attn::bfloat16_to_float(bits); }
  static uint16_t from_float(float x) { return attn::float_to_bfloat16(x); }
};

template <class Type>
void check_every_value() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = value_of(bits, Type::kExponentBits, Type::kMantissaBits);
    const float found = Type::to_float(static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      CHECK(std::isnan(found));
      const uint16_t back = Type::from_float(found);
      CHECK(std::isnan(Type::to_float(back)));
      CHECK_EQ(back >> 15, static_cast<int>(bits >> 15));
      continue;
    }
    CHECK_EQ(static_cast<double>(found), expected);
    CHECK_EQ(std::signbit(found), std::signbit(expected));
    CHECK_EQ(Type::from_float(found), bits);
  }
}

// Between neighbours the nearer one, of two equally near ones the even one.
template <class Type>
void check_rounding() {
  const uint32_t infinity = ((1u << Type::kExponentBits) - 1) << Type::kMantissaBits;
  for (uint32_t sign : {0u, 0x8000u})
    for (uint32_t low = 0; low < infinity; ++low) {
      const uint32_t high = low + 1;
      const float s = sign ? -1.f : 1.f;
      const double a = value_of(low, Type::kExponentBits, Type::kMantissaBits);
      // The largest number's other neighbour stands where the next power of two would.
      const double b = high == infinity
                           ? 2 * a - value_of(low - 1, Type::kExponentBits, Type::kMantissaBits)
                           : value_of(high, Type::kExponentBits, Type::kMantissaBits);
      const float middle = static_cast<float>((a + b) / 2);
      const float before = std::nextafter(middle, 0.f), after = std::nextafter(middle, INFINITY);
      CHECK_EQ(static_cast<double>(middle), (a + b) / 2);
      CHECK_EQ(Type::from_float(s * middle), sign | (low & 1 ? high : low));
      CHECK_EQ(Type::from_float(s * before), sign | low);
      CHECK_EQ(Type::from_float(s * after), sign | high);
    }
}

}  // namespace

TEST(every_half) {
  check_every_value<Half>();
  check_rounding<Half>();
}

TEST(every_bfloat16) {
  check_every_value<BFloat>();
  check_rounding<BFloat>();
}

TEST(conversions_of_extreme_floats) {
  const float largest = std::numeric_limits<float>::max();
  const float smallest = std::numeric_limits<float>::denorm_min();
  CHECK_EQ(attn::float_to_float16(largest), 0x7c00);
  CHECK_EQ(attn::float_to_float16(-largest), 0xfc00);
  CHECK_EQ(attn::float_to_float16(INFINITY), 0x7c00);
  CHECK_EQ(attn::float_to_float16(smallest), 0);
  CHECK_EQ(attn::float_to_float16(-smallest), 0x8000);
  CHECK_EQ(attn::float_to_bfloat16(largest), 0x7f80);
  CHECK_EQ(attn::float_to_bfloat16(-INFINITY), 0xff80);
  CHECK_EQ(attn::float_to_bfloat16(smallest), 0);
  // The payload of a NaN may lie in the bits that are cut off.
  for (const uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0x7fc00000u}) {
    const float nan = attn::bits_to_float(bits);
    CHECK(std::isnan(attn::bfloat16_to_float(attn::float_to_bfloat16(nan))));
    CHECK(std::isnan(attn::float16_to_float(attn::float_to_float16(nan))));
    CHECK_EQ(attn::float_to_bfloat16(nan) >> 15, static_cast<int>(bits >> 31));
    CHECK_EQ(attn::float_to_float16(nan) >> 15, static_cast<int>(bits >> 31));
  }
}

TEST(sizes_of_dtypes) {
  CHECK_EQ(attn::size_of(attn::Dtype::kFloat32), 4);
  CHECK_EQ(attn::size_of(attn::Dtype::kFloat64), 8);
  CHECK_EQ(attn::size_of(attn::Dtype::kBFloat16), 2);
  CHECK_EQ(attn::size_of(attn::Dtype::kFloat16), 2);
}
