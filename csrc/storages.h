// What is stored in fewer bits than it is computed with: how a float32 becomes that, and back.
//
// Each storage is a pair of functions on registers; spectramind_fused/kernels/triton/storage.py has
// the same pairs in Triton. `random` are 16 random bits. A rounding is stochastic where they are
// given: up with the probability that makes the mean exact, so that what is too small to move a
// value moves it on average. Walks do every load and store.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "portable.h"
#include "tables.h"

namespace spectramind {

SPECTRAMIND_HD inline uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t raw;
  std::memcpy(&raw, &value, sizeof raw);
  return raw;
#endif
}

SPECTRAMIND_HD inline float float_of(uint32_t raw) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(raw);
#else
  float value;
  std::memcpy(&value, &raw, sizeof value);
  return value;
#endif
}

// A choice without a branch, which would keep a long loop from becoming vectors.
SPECTRAMIND_HD inline uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  return no ^ ((yes ^ no) & (0u - uint32_t(condition)));
}

constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u;

// bfloat16, stochastic. Infinities stay, and a NaN does not become -0.
SPECTRAMIND_HD inline uint16_t stochastic_bfloat16(float value, uint32_t random) {
  const uint32_t raw = bits_of(value), magnitude = raw & kMagnitude;
  uint32_t rounded = choose(magnitude < kInfinity, raw + random, raw) >> 16;
  return uint16_t(choose(magnitude > kInfinity, 0x7fc0u, rounded));
}

// float16, stochastic: 13 bits are cut off. Below 2^-14 it is a multiple of 2^-24.
SPECTRAMIND_HD inline uint16_t stochastic_float16(float value, uint32_t random) {
  const uint32_t raw = bits_of(value), magnitude = raw & kMagnitude;
  const bool small = magnitude < 0x38800000u;
  const float units = float_of(choose(small, magnitude, 0u)) * 0x1p24f;
  const uint32_t subnormal = uint32_t(int32_t(units + float(int32_t(random)) * 0x1p-16f));
  const uint32_t normal = (magnitude - 0x38000000u + (random >> 3)) >> 13;
  uint32_t half = choose(small, subnormal, normal);
  half = choose(magnitude >= 0x47800000u, 0x7c00u, half);  // 65536 and above
  half = choose(magnitude > kInfinity, 0x7e00u, half);
  return uint16_t(half | choose(magnitude > kInfinity, 0u, raw >> 16 & 0x8000u));
}

// A float32 in halves: the nearest bfloat16, and what it lacks. Exact ties are rounded away from
// zero, for 16 bits do not tell all of them apart.
SPECTRAMIND_HD inline float join(uint16_t upper, int16_t remainder) {
  return float_of((uint32_t(upper) << 16) + uint32_t(int32_t(remainder)));
}
SPECTRAMIND_HD inline uint32_t whole_of(float value) {
  return choose(value != value, 0x7fc00000u, bits_of(value));
}
SPECTRAMIND_HD inline uint16_t upper_of(float value) {
  return uint16_t((whole_of(value) + 0x8000u) >> 16);
}
SPECTRAMIND_HD inline int16_t remainder_of(float value) { return int16_t(whole_of(value)); }

// What an upper half adds to the checksum of its piece: any other one in its place shows, and
// others in several places do not make up for each other.
SPECTRAMIND_HD inline uint32_t check_of(uint16_t upper, int64_t at) {
  const uint32_t mixed = uint32_t(upper) * 0x9e3779b1u ^ uint32_t(at) * 0x85ebca6bu;
  return (mixed ^ mixed >> 15) * 0xc2b2ae35u;
}

// Eight bits, in groups of kGroup with a scale: the group's largest finite value, as a bfloat16
// that is not below it. Codes are rounded stochastically. One that is not finite has a code of its
// own, so it spoils no other.
//
// Signed (a mean): y = 2x / (1 + |x|) of x = value / scale, in 127 steps: finer near 0. -128: NaN.
// Unsigned (a mean square): by its root, in 254 steps. 255: infinite. A square above 0 has at least
// code 1: with 0 the step would be divided by eps alone.
SPECTRAMIND_HD inline uint32_t finite_magnitude(float value) {
  const uint32_t magnitude = bits_of(value) & kMagnitude;
  return choose(magnitude < kInfinity, magnitude, 0u);
}
SPECTRAMIND_HD inline uint16_t scale_of(uint32_t largest) {
  const uint32_t up = (largest + 0xffffu) >> 16;
  return uint16_t(choose(up > 0x7f7fu, 0x7f7fu, up));
}

SPECTRAMIND_HD inline float fraction_of(uint32_t random) {
  return float(int32_t(random)) * 0x1p-16f;
}
SPECTRAMIND_HD inline int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

SPECTRAMIND_HD inline int8_t to_signed8(float value, float scale, uint32_t random) {
  const uint32_t magnitude = bits_of(value) & kMagnitude, finite = finite_magnitude(value);
  const float half = 0.5f * float_of(finite), sum = half + 0.5f * scale;
  const float part = half / (sum > 0.0f ? sum : 1.0f);
  const int32_t steps = least(int32_t(std::fma(part, 254.0f, fraction_of(random))), 127);
  const int32_t code = bits_of(value) > kMagnitude ? -steps : steps;
  return int8_t(magnitude < kInfinity ? code : -128);
}
SPECTRAMIND_HD inline float from_signed8(int8_t code, float scale) {
  const float steps = float(int32_t(code)), size = std::fabs(steps);
  const float value = scale * (steps / (254.0f - size));
  return float_of(choose(size > 127.0f, 0x7fc00000u, bits_of(value)));
}

SPECTRAMIND_HD inline uint8_t to_unsigned8(float root, float scale, uint32_t random) {
  const float finite = float_of(finite_magnitude(root));
  const float part = finite / (scale > 0.0f ? scale : 1.0f);
  const int32_t steps = least(int32_t(std::fma(part, 254.0f, fraction_of(random))), 254);
  const int32_t code = finite > 0.0f && steps < 1 ? 1 : steps;
  return uint8_t((bits_of(root) & kMagnitude) < kInfinity ? code : 255);
}
SPECTRAMIND_HD inline float from_unsigned8(uint8_t code, float scale) {
  const float steps = float(int32_t(code)), root = scale * (steps * float(1.0 / 254));
  return float_of(choose(steps > 254.0f, kInfinity, bits_of(root * root)));
}

}  // namespace spectramind
