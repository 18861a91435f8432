// How values reach the compute type and go back: the storage axis on CPUs.
//
// A loop reads and writes one type for the parameter and one for the rest, and widens and rounds
// (once, to nearest even, as torch does) as it goes. A slot stored in its type is used in place;
// any other goes through a buffer of a block that fits the first-level cache: also what storages.h
// has, of which the random bits of a block are drawn before its loop.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../factored.h"
#include "../random.h"
#include "../storages.h"
#include "../tables.h"

// One binary for every x86-64: the loader picks the widest vectors the CPU has. (It does so before
// ThreadSanitizer, which GCC calls there, is ready.)
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#define SPECTRAMIND_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SPECTRAMIND_CLONES
#endif

namespace spectramind {

struct bfloat16 {
  uint16_t raw;
};

struct float16 {
  uint16_t raw;
};

inline float widen(bfloat16 value) { return float_of(uint32_t(value.raw) << 16); }

inline float widen(float16 value) {
  const uint32_t sign = uint32_t(value.raw & 0x8000u) << 16;
  const uint32_t rest = uint32_t(value.raw & 0x7fffu) << 13;
  // 2^112 corrects the exponent bias, and normalises subnormals on the way
  const float finite = float_of(rest) * 0x1p112f;
  const uint32_t special = rest | 0x7f800000u;  // inf and NaN keep their payload
  return float_of((rest >= (31u << 23) ? special : bits_of(finite)) | sign);
}

inline double widen(double value) { return value; }
inline float widen(float value) { return value; }

inline void narrow(double value, double& to) { to = value; }
inline void narrow(double value, float& to) { to = float(value); }
inline void narrow(float value, float& to) { to = value; }

inline void narrow(float value, bfloat16& to) {
  const uint32_t raw = bits_of(value);
  const uint32_t rounded = (raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16;
  to.raw = uint16_t(value != value ? 0x7fc0u : rounded);
}

inline void narrow(float value, float16& to) {
  const uint32_t raw = bits_of(value);
  const uint32_t sign = (raw >> 16) & 0x8000u;
  const uint32_t magnitude = raw & 0x7fffffffu;
  // Below 2^-14 a half is a multiple of 2^-24: adding 0.5, whose last bit is
  // 2^-24, lets the FPU round there.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
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
struct PlainOf;
template <>
struct PlainOf<float> {
  static constexpr Stored value = FLOAT32;
};
template <>
struct PlainOf<double> {
  static constexpr Stored value = FLOAT64;
};
template <>
struct PlainOf<bfloat16> {
  static constexpr Stored value = BFLOAT16;
};
template <>
struct PlainOf<float16> {
  static constexpr Stored value = FLOAT16;
};

// Calls f with a null pointer of the plain type that is stored.
template <class F>
void with_plain(Stored stored, F f) {
  switch (stored) {
    case FLOAT64: return f(static_cast<double*>(nullptr));
    case BFLOAT16:
    case STOCHASTIC_BFLOAT16: return f(static_cast<bfloat16*>(nullptr));
    case FLOAT16:
    case STOCHASTIC_FLOAT16: return f(static_cast<float16*>(nullptr));
    default: return f(static_cast<float*>(nullptr));
  }
}

constexpr int64_t kBlock = 1024;  // six slots of fp32 fill half of a 48 KiB cache

// The bits of whole calls. In 64-bit lanes, for it becomes vectors of those.
SPECTRAMIND_CLONES inline void draw_calls(const Draw& draw, uint64_t first, int64_t calls,
                                          uint32_t* words) {
  const Draw d = draw;
#pragma GCC ivdep
  for (int64_t i = 0; i < calls; ++i) {
    uint64_t counter[4] = {(first + uint64_t(i)) & 0xffffffffu, d.step, d.parameter, d.stream};
    philox(counter, d.key[0], d.key[1]);
    for (int j = 0; j < 4; ++j) words[4 * i + j] = uint32_t(counter[j]);
  }
}

// The 16 random bits of each element of a block, which is part of a tensor.
inline void draw_block(const Draw& draw, const Place& place, int64_t first, int64_t n,
                       uint16_t* random) {
  uint32_t words[kBlock / 2 + 8];
  for (int64_t done = 0; done < n;) {  // a stretch of elements that follow one another in the whole
    const int64_t at = first + done, left = n - done, in_run = place.run - at % place.run;
    const int64_t count = left < in_run ? left : in_run, whole = place(at);
    const int64_t before = whole % kElementsPerCall;
    draw_calls(draw, uint64_t(whole) / kElementsPerCall,
               (before + count + kElementsPerCall - 1) / kElementsPerCall, words);
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
                  "the lower half of a word comes first");
    std::memcpy(random + done, reinterpret_cast<const uint16_t*>(words) + before,
                size_t(count) * 2);
    done += count;
  }
}

// The loops of storages.h: over a block, or over one group of it.

SPECTRAMIND_CLONES inline void store_stochastic(const float* from, const uint16_t* random,
                                                bfloat16* to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i].raw = stochastic_bfloat16(from[i], random[i]);
}

SPECTRAMIND_CLONES inline void store_stochastic(const float* from, const uint16_t* random,
                                                float16* to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i].raw = stochastic_float16(from[i], random[i]);
}

SPECTRAMIND_CLONES inline void join_block(const bfloat16* upper, const int16_t* remainder,
                                          float* to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i] = join(upper[i].raw, remainder[i]);
}

SPECTRAMIND_CLONES inline void split_block(const float* from, bfloat16* upper, int16_t* remainder,
                                           int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    upper[i].raw = upper_of(from[i]);
    remainder[i] = remainder_of(from[i]);
  }
}

SPECTRAMIND_CLONES inline uint32_t checksum(const bfloat16* upper, int64_t first, int64_t n) {
  uint32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += check_of(upper[i].raw, first + i);
  return sum;
}

// The master where it still rounds to what is in the parameter, else the parameter: someone wrote
// to it.
template <class S>
SPECTRAMIND_CLONES void load_master(const S* from, const float* master, float* to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    S rounded;
    narrow(master[i], rounded);
    to[i] =
        float_of(choose(rounded.raw == from[i].raw, bits_of(master[i]), bits_of(widen(from[i]))));
  }
}

template <class Code>
struct Eight;  // a storage of 8 bits: what is scaled, how it is coded and decoded
template <>
struct Eight<int8_t> {
  static float scaled(float value) { return value; }
  static int8_t code(float value, float scale, uint32_t r) { return to_signed8(value, scale, r); }
  static float value(int8_t code, float scale) { return from_signed8(code, scale); }
};
template <>
struct Eight<uint8_t> {
  static float scaled(float value) { return std::sqrt(value); }
  static uint8_t code(float root, float scale, uint32_t r) { return to_unsigned8(root, scale, r); }
  static float value(uint8_t code, float scale) { return from_unsigned8(code, scale); }
};

// n is kGroup, known to the compiler, or less.
template <class Code>
inline void load_group(const Code* from, float scale, float* to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i] = Eight<Code>::value(from[i], scale);
}

template <class Code>
inline void store_group(const float* from, const uint16_t* random, Code* to, bfloat16* scale,
                        int64_t n) {
  float scaled[kGroup];
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    scaled[i] = Eight<Code>::scaled(from[i]);
    const uint32_t magnitude = finite_magnitude(scaled[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  scale->raw = scale_of(largest);
  const float by = widen(*scale);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i] = Eight<Code>::code(scaled[i], by, random[i]);
}

template <class Code>
SPECTRAMIND_CLONES void load_groups(const Code* from, const bfloat16* scales, float* to,
                                    int64_t n) {
  int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup)
    load_group(from + i, widen(scales[i / kGroup]), to + i, kGroup);
  if (i < n) load_group(from + i, widen(scales[i / kGroup]), to + i, n - i);
}

template <class Code>
SPECTRAMIND_CLONES void store_groups(const float* from, const uint16_t* random, Code* to,
                                     bfloat16* scales, int64_t n) {
  int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup)
    store_group(from + i, random + i, to + i, scales + i / kGroup, kGroup);
  if (i < n) store_group(from + i, random + i, to + i, scales + i / kGroup, n - i);
}

// The products of two vectors, for some elements of a tensor.
template <class T>
SPECTRAMIND_CLONES void load_factored(const int64_t* layout, const T* outer, const T* inner,
                                      int64_t first, int64_t n, T* to) {
  const int64_t outers = layout[OUTER], betweens = layout[BETWEEN];
  const int64_t inners = layout[INNER], withins = layout[WITHIN];
  // Where the first element is: [a, b, c, d, w].
  const int64_t stretch = first / withins;
  int64_t w = first % withins, d = stretch % inners, line = stretch / inners;
  int64_t c = line % betweens, b = line / betweens % outers, a = line / betweens / outers;
  for (int64_t done = 0; done < n;) {
    const T* across = outer + line * withins;
    const T* along = inner + (a * betweens + c) * inners * withins;
    const int64_t left = n - done;
    int64_t count;
    if (withins > 1) {
      count = left < withins - w ? left : withins - w;
      across += w, along += d * withins + w;
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) to[done + i] = across[i] * along[i];
      w = 0, ++d;
    } else {
      count = left < inners - d ? left : inners - d;
      along += d;
      const T by = across[0];
      if (count < 8) {
        for (int64_t i = 0; i < count; ++i) to[done + i] = by * along[i];
      } else {
#pragma GCC ivdep
        for (int64_t i = 0; i < count; ++i) to[done + i] = by * along[i];
      }
      d = inners;
    }
    done += count;
    if (d < inners) continue;
    d = 0, ++line;
    if (++c < betweens) continue;
    c = 0;
    if (++b < outers) continue;
    b = 0, ++a;
  }
}

// One tensor of one slot, as a loop over S reads and writes it, block after block.
template <class S>
class Storage {
 public:
  Storage() = default;
  Storage(const Tables& t, int slot, int64_t tensor, uint32_t stream)
      : base_(at<char>(t, slot, tensor)), stored_(Stored(t.stored[slot])) {
    if (rows_beside(stored_)) {
      const int64_t row = row_beside(t, t.stored, slot);
      beside_ = at<char>(t, row, tensor);
      if (stored_ == SPLIT_BFLOAT16) checksums_ = at<uint32_t>(t, row + 1, tensor);
      if (stored_ == FACTORED) layout_ = at<int64_t>(t, row + 1, tensor);
      size_ = t.sizes[tensor];
    }
    if (is_random(stored_)) {
      place_ = place_of(t, tensor);
      draw_ = draw_of(t, tensor, stream);
    }
  }

  // A block, which begins at a multiple of kBlock.
  S* load(int64_t first, int64_t n, S* buffer) {
    if (stored_ == PlainOf<S>::value) return own<S>(first);
    if constexpr (sizeof(S) > 2) {
      if (stored_ == FACTORED) {
        load_factored(layout_, own<S>(0), beside<S>(0), first, n, buffer);
        return buffer;
      }
    }
    if constexpr (std::is_same_v<S, float>) {
      switch (stored_) {
        case SPLIT_BFLOAT16: join_or_widen(first, n, buffer); return buffer;
        case MASTER_BFLOAT16:
          load_master(own<bfloat16>(first), beside<float>(first), buffer, n);
          return buffer;
        case MASTER_FLOAT16:
          load_master(own<float16>(first), beside<float>(first), buffer, n);
          return buffer;
        case SIGNED8: load_groups(own<int8_t>(first), scales(first), buffer, n); return buffer;
        case UNSIGNED8: load_groups(own<uint8_t>(first), scales(first), buffer, n); return buffer;
        default: break;
      }
    }
    if constexpr (sizeof(S) > 2)  // a loop over 16 bits is given nothing else
      with_plain(stored_, [&](auto* plain) {
        widen_block(own<std::remove_pointer_t<decltype(plain)>>(first), buffer, n);
      });
    return buffer;
  }

  // `values` is what load() returned: in place already where that was memory.
  void store(int64_t first, int64_t n, const S* values) {
    if (stored_ == PlainOf<S>::value || stored_ == FACTORED) return;
    if constexpr (std::is_same_v<S, float>) {
      uint16_t random[kBlock];
      if (is_random(stored_)) draw_block(draw_, place_, first, n, random);
      switch (stored_) {
        case STOCHASTIC_BFLOAT16: return store_stochastic(values, random, own<bfloat16>(first), n);
        case STOCHASTIC_FLOAT16: return store_stochastic(values, random, own<float16>(first), n);
        case SPLIT_BFLOAT16: return split_and_check(first, n, values);
        case MASTER_BFLOAT16:
          std::memcpy(beside<float>(first), values, size_t(n) * sizeof(float));
          return narrow_block(values, own<bfloat16>(first), n);
        case MASTER_FLOAT16:
          std::memcpy(beside<float>(first), values, size_t(n) * sizeof(float));
          return narrow_block(values, own<float16>(first), n);
        case SIGNED8: return store_groups(values, random, own<int8_t>(first), scales(first), n);
        case UNSIGNED8: return store_groups(values, random, own<uint8_t>(first), scales(first), n);
        default: break;
      }
    }
    if constexpr (sizeof(S) > 2)
      with_plain(stored_, [&](auto* plain) {
        narrow_block(values, own<std::remove_pointer_t<decltype(plain)>>(first), n);
      });
  }

  void zero(int64_t first, int64_t n) const {  // 0 is all bits clear in every plain type
    const int64_t size = stored_ == FLOAT64 ? 8 : stored_ == FLOAT32 ? 4 : 2;
    std::memset(base_ + first * size, 0, size_t(n * size));
  }

 private:
  template <class To>
  static To* at(const Tables& t, int64_t row, int64_t tensor) {
    return reinterpret_cast<To*>(t.pointers[row * t.tensors + tensor]);
  }
  template <class To>
  To* own(int64_t first) const {
    return reinterpret_cast<To*>(base_) + first;
  }
  template <class To>
  To* beside(int64_t first) const {
    return reinterpret_cast<To*>(beside_) + first;
  }
  bfloat16* scales(int64_t first) const { return beside<bfloat16>(first / kGroup); }

  // A remainder counts where its upper half is what it was left beside: elsewhere someone has
  // written to the parameter.
  void join_or_widen(int64_t first, int64_t n, float* to) {
    const bfloat16* upper = own<bfloat16>(first);
    if (first % kPiece == 0) {
      const int64_t left = size_ - first;
      joins_ = checksum(upper, first, left < kPiece ? left : kPiece) == checksums_[first / kPiece];
      sum_ = 0;
    }
    if (joins_)
      join_block(upper, beside<int16_t>(first), to, n);
    else
      widen_block(upper, to, n);
  }

  void split_and_check(int64_t first, int64_t n, const float* values) {
    split_block(values, own<bfloat16>(first), beside<int16_t>(first), n);
    sum_ += checksum(own<bfloat16>(first), first, n);
    const int64_t last = first + n;
    if (last % kPiece == 0 || last == size_) checksums_[first / kPiece] = sum_;
  }

  char* base_;
  Stored stored_;
  char* beside_;
  uint32_t* checksums_;
  const int64_t* layout_;
  int64_t size_;
  Place place_;
  Draw draw_;
  bool joins_ = false;
  uint32_t sum_ = 0;
};

}  // namespace spectramind
