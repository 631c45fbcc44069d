// How the values of a warp's lanes are read and written, and functions of them made actions.
#pragma once

#include <cstring>
#include <type_traits>

#include "operations.h"
#include "warp.h"

namespace ptx {

inline bool has(uint32_t mask, int lane) { return mask >> lane & 1; }

inline uint32_t& predicate(Warp& warp, const Place& place) {
  return *reinterpret_cast<uint32_t*>(warp.registers + place.at);
}

inline void put_predicate(Warp& warp, const Place& place, uint32_t value, uint32_t mask) {
  uint32_t& to = predicate(warp, place);
  to = (to & ~mask) | (value & mask);
}

template <class T>
T* lanes(Warp& warp, const Place& place) {
  return reinterpret_cast<T*>(warp.registers + place.at);
}

template <class T>
void put(Warp& warp, const Place& place, const T (&values)[kLanes], uint32_t mask) {
  T* to = lanes<T>(warp, place);
  if (mask == kAllLanes) {
    memcpy(to, values, sizeof values);
    return;
  }
  for (int lane = 0; lane < kLanes; ++lane)
    if (has(mask, lane)) to[lane] = values[lane];
}

// Registers of any width, as the low bits of 64.
inline void get_bits(Warp& warp, const Place& place, uint64_t (&values)[kLanes]) {
  const auto copy = [&]<class T>(T) {
    const T* from = lanes<T>(warp, place);
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = from[lane];
  };
  if (place.bytes == 2) copy(uint16_t{});
  if (place.bytes == 4) copy(uint32_t{});
  if (place.bytes == 8) copy(uint64_t{});
}

inline void put_bits(Warp& warp, const Place& place, const uint64_t (&values)[kLanes],
                     uint32_t mask) {
  const auto copy = [&]<class T>(T) {
    T narrow[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) narrow[lane] = static_cast<T>(values[lane]);
    put(warp, place, narrow, mask);
  };
  if (place.bytes == 2) copy(uint16_t{});
  if (place.bytes == 4) copy(uint32_t{});
  if (place.bytes == 8) copy(uint64_t{});
}

template <class T>
constexpr Kind kOf{sizeof(T)};

// ".s32" of an int32_t.
template <class T>
std::string suffix() {
  const char* letter = std::is_floating_point_v<T> ? ".f" : std::is_signed_v<T> ? ".s" : ".u";
  return letter + std::to_string(8 * sizeof(T));
}

template <class T>
std::string bits_suffix() {
  return ".b" + std::to_string(8 * sizeof(T));
}

// Calls f with a value of each type.
template <class... Types, class F>
void for_types(F f) {
  (f(Types{}), ...);
}

template <class F>
void for_integers(F f) {
  for_types<int16_t, uint16_t, int32_t, uint32_t, int64_t, uint64_t>(f);
}

// The action that applies F, a function object, to registers: result, arguments.
template <class F, class Result, class... Arguments>
void apply(Warp& warp, const Instruction& in, uint32_t mask) {
  const auto each = [&]<size_t... kAt>(std::index_sequence<kAt...>) {
    Result results[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      results[lane] = F()(lanes<Arguments>(warp, in.of[1 + kAt])[lane]...);
    put(warp, in.of[0], results, mask);
  };
  each(std::index_sequence_for<Arguments...>());
}

template <class F, class Result, class... Arguments>
void add(Operations& table, const std::string& opcode) {
  table[opcode] = {apply<F, Result, Arguments...>, Flow::kNext, {kOf<Result>, kOf<Arguments>...}};
}

}  // namespace ptx
