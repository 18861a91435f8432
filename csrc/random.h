// Random bits that depend on nothing but whose they are: Philox4x32-10 (Salmon et al. 2011), a
// counter-based generator. So every backend, number of threads, chunk and rank draws the same.
#pragma once

#include <cstdint>

#include "portable.h"

namespace spectramind {

// Whose random bits: `key` is the seed; of the counter all but the element.
struct Draw {
  uint32_t key[2];
  uint32_t step;       // of the parameter
  uint32_t parameter;  // among all of the optimizer
  uint32_t stream;     // of its slots
};

// Elements that share the 128 bits of a call, 16 each.
constexpr int64_t kElementsPerCall = 8;

// Slow and averaged weights have streams of their own, wherever their slots are.
enum Stream : uint32_t { SLOW_STREAM = 14, AVERAGE_STREAM = 15 };

// The product of 32-bit numbers. In 64-bit lanes, which are what CPUs multiply into.
SPECTRAMIND_HD inline void multiply(uint64_t a, uint64_t b, uint64_t& high, uint64_t& low) {
  const uint64_t product = a * b;
  high = product >> 32;
  low = product & 0xffffffffu;
}
SPECTRAMIND_HD inline void multiply(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
  const uint64_t product = uint64_t(a) * b;
  high = uint32_t(product >> 32);
  low = uint32_t(product);
}

// Replaces a counter by 128 random bits. U is uint32_t, or uint64_t whose upper half is 0.
template <class U>
SPECTRAMIND_HD inline void philox(U* counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    multiply(U(0xd2511f53u), counter[0], high0, low0);
    multiply(U(0xcd9e8d57u), counter[2], high1, low1);
    counter[0] = high1 ^ counter[1] ^ U(key0);
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ U(key1);
    counter[3] = low0;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
}

// Where a tensor's elements are in the parameter: a row of Tables::places.
struct Place {
  int64_t offset, run, stride;

  SPECTRAMIND_HD int64_t operator()(int64_t i) const {
    return offset + (i < run ? i : i / run * stride + i % run);
  }
};

// The 16 bits of one element, given by its index in the whole parameter.
SPECTRAMIND_HD inline uint32_t random16(const Draw& draw, int64_t element) {
  uint32_t words[4] = {uint32_t(uint64_t(element) / kElementsPerCall), draw.step, draw.parameter,
                       draw.stream};
  philox(words, draw.key[0], draw.key[1]);
  const int at = int(element % kElementsPerCall);
  const uint32_t word = at < 4 ? (at < 2 ? words[0] : words[1]) : (at < 6 ? words[2] : words[3]);
  return word >> (at % 2 * 16) & 0xffffu;
}

}  // namespace spectramind
