// How values reach the compute type and go back: the storage axis on CPUs.
//
// A loop reads and writes one type for the parameter and one for the rest, and widens and rounds
// (once, to nearest even, as torch does) as it goes. A slot stored in its type is used in place;
// any other goes through a buffer of a block that fits the first-level cache.
#pragma once

#include <cstdint>
#include <cstring>

#include "../tables.h"

// One binary for every x86-64: the loader picks the widest vectors the CPU has.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && !defined(__clang__)
#define SPECTRAMIND_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SPECTRAMIND_CLONES
#endif

namespace spectramind {

template <class To, class From>
inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "same width");
  To to;
  std::memcpy(&to, &value, sizeof to);
  return to;
}

struct bfloat16 {
  uint16_t raw;
};

struct float16 {
  uint16_t raw;
};

inline float widen(bfloat16 value) { return bits<float>(uint32_t(value.raw) << 16); }

inline float widen(float16 value) {
  const uint32_t sign = uint32_t(value.raw & 0x8000u) << 16;
  const uint32_t rest = uint32_t(value.raw & 0x7fffu) << 13;
  // 2^112 corrects the exponent bias, and normalises subnormals on the way
  const float finite = bits<float>(rest) * 0x1p112f;
  const uint32_t special = rest | 0x7f800000u;  // inf and NaN keep their payload
  return bits<float>((rest >= (31u << 23) ? special : bits<uint32_t>(finite)) | sign);
}

inline double widen(double value) { return value; }
inline float widen(float value) { return value; }

inline void narrow(double value, double& to) { to = value; }
inline void narrow(double value, float& to) { to = float(value); }
inline void narrow(float value, float& to) { to = value; }

inline void narrow(float value, bfloat16& to) {
  const uint32_t raw = bits<uint32_t>(value);
  const uint32_t rounded = (raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16;
  to.raw = uint16_t(value != value ? 0x7fc0u : rounded);
}

// A choice without a branch, which would keep a long loop from becoming vectors.
inline uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  return no ^ ((yes ^ no) & (0u - uint32_t(condition)));
}

inline void narrow(float value, float16& to) {
  const uint32_t raw = bits<uint32_t>(value);
  const uint32_t sign = (raw >> 16) & 0x8000u;
  const uint32_t magnitude = raw & 0x7fffffffu;
  // Below 2^-14 a half is a multiple of 2^-24: adding 0.5, whose last bit is
  // 2^-24, lets the FPU round there.
  const uint32_t subnormal = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t half = choose(magnitude < 0x38800000u, subnormal, normal);
  half = choose(magnitude >= 0x477ff000u, 0x7c00u, half);  // 65520 and above round to infinity
  half = choose(magnitude > 0x7f800000u, 0x7e00u, half);
  to.raw = uint16_t(half | sign);
}

template <class To, class From>
SPECTRAMIND_CLONES void widen_block(const From* from, To* to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i] = To(widen(from[i]));
}

template <class From, class To>
SPECTRAMIND_CLONES void narrow_block(const From* from, To* to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) narrow(from[i], to[i]);
}

template <class S>
struct DtypeOf;
template <>
struct DtypeOf<float> {
  static constexpr Dtype value = FLOAT32;
};
template <>
struct DtypeOf<double> {
  static constexpr Dtype value = FLOAT64;
};
template <>
struct DtypeOf<bfloat16> {
  static constexpr Dtype value = BFLOAT16;
};
template <>
struct DtypeOf<float16> {
  static constexpr Dtype value = FLOAT16;
};

// Calls f with a null pointer of the type that is stored.
template <class F>
void with_stored(Dtype dtype, F f) {
  switch (dtype) {
    case FLOAT32: return f(static_cast<float*>(nullptr));
    case FLOAT64: return f(static_cast<double*>(nullptr));
    case BFLOAT16: return f(static_cast<bfloat16*>(nullptr));
    case FLOAT16: return f(static_cast<float16*>(nullptr));
  }
}

// One tensor of one slot, as a loop over S reads and writes it, a block at a time.
template <class S>
struct Storage {
  char* base;
  Dtype dtype;

  S* load(int64_t first, int64_t n, S* buffer) const {
    if (dtype == DtypeOf<S>::value) return reinterpret_cast<S*>(base) + first;
    if constexpr (sizeof(S) > 2)  // a loop over 16 bits is given nothing else
      with_stored(dtype, [&](auto* stored) {
        widen_block(reinterpret_cast<decltype(stored)>(base) + first, buffer, n);
      });
    return buffer;
  }

  // `values` is what load() returned: in place already where that was memory.
  void store(int64_t first, int64_t n, const S* values) const {
    if (dtype == DtypeOf<S>::value) return;
    if constexpr (sizeof(S) > 2)
      with_stored(dtype, [&](auto* stored) {
        narrow_block(values, reinterpret_cast<decltype(stored)>(base) + first, n);
      });
  }

  void zero(int64_t first, int64_t n) const {  // 0 is all bits clear in every dtype
    const int64_t size = dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2;
    std::memset(base + first * size, 0, n * size);
  }
};

}  // namespace spectramind
