// float16 by the processor's own instructions, which GCC makes of no loop: a piece of a block is
// widened, stepped and rounded while it is in the nearest cache. One binary for every x86-64: what
// the processor can do is asked once, and one that cannot converts in arithmetic (storage.h).
#pragma once

#include "../tables.h"
#include "storage.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

// A function of the loops below, for this processor.
#define SPECTRAMIND_HALF(...) \
  (half::vectors() == 16 ? half::v4::__VA_ARGS__ : half::v3::__VA_ARGS__)

namespace spectramind {
namespace half {

// So few that the processor looks ahead, from one piece's roots to the next one's conversions.
constexpr int64_t kPieceOfBlock = 64;

// How many are converted at once; 0: none.
inline int vectors() {
  static const int count =
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd")
          ? 16
      : __builtin_cpu_supports("avx2") ? 8  // all of these have F16C
                                       : 0;
  return count;
}

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
constexpr int64_t kVector = 8;
inline void widen(const float16* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline void narrow(const float* from, float16* to) {
  const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
}
#include "half_loop.h"
}  // namespace v3
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace v4 {
constexpr int64_t kVector = 16;
inline void widen(const float16* from, float* to) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm512_storeu_ps(to, _mm512_cvtph_ps(halves));
}
inline void narrow(const float* from, float16* to) {
  const __m256i halves = _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}
#include "half_loop.h"
}  // namespace v4
#pragma GCC pop_options

// How many of n elements are whole pieces, for those who can.
inline int64_t whole_pieces(int64_t n) { return vectors() ? n - n % kPieceOfBlock : 0; }

}  // namespace half

template <>
inline void widen_block(const float16* from, float* to, int64_t n) {
  const int64_t whole = half::whole_pieces(n);
  if (whole) SPECTRAMIND_HALF(widen_pieces)(from, to, whole);
  for (int64_t i = whole; i < n; ++i) to[i] = widen(from[i]);
}

template <>
inline void narrow_block(const float* from, float16* to, int64_t n) {
  const int64_t whole = half::whole_pieces(n);
  if (whole) SPECTRAMIND_HALF(narrow_pieces)(from, to, whole);
  for (int64_t i = whole; i < n; ++i) narrow(from[i], to[i]);
}

// The whole pieces of a block; returns how many elements they are.
template <class Rule, int States, class P>
int64_t update_halves(P* p, const float16* g, float16* const* states, const float* scalars,
                      int64_t n) {
  const int64_t whole = half::whole_pieces(n);
  const auto update = SPECTRAMIND_HALF(update_pieces<Rule, States, P>);
  if (whole) update(p, g, states, scalars, whole);
  return whole;
}

}  // namespace spectramind
#else
namespace spectramind {
template <class Rule, int States, class P>
int64_t update_halves(P*, const float16*, float16* const*, const float*, int64_t) {
  return 0;
}
}  // namespace spectramind
#endif
