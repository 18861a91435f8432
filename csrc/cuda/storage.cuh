// How values get into float32 registers and back: the storage axis on NVIDIA GPUs.
//
// A thread moves V consecutive elements, by accesses of up to 128 bits where V > 1, for which the
// address must be one of 16-byte alignment. Rounding is to nearest even.
#pragma once

#include <cstdint>

#include "../tables.h"
#include "../walk.h"

namespace spectramind {

struct bfloat16 {
  uint16_t raw;
};
struct float16 {
  uint16_t raw;
};
struct Mixed;  // slots of several types, which are known when the kernel runs

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(bfloat16 value) { return __uint_as_float(uint32_t(value.raw) << 16); }
__device__ inline float widen(float16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.raw));
  return wide;
}

__device__ inline void narrow(float value, float& to) { to = value; }
__device__ inline void narrow(float value, bfloat16& to) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.raw) : "f"(value));
}
__device__ inline void narrow(float value, float16& to) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.raw) : "f"(value));
}

// What one instruction loads or stores.
template <int N>
struct alignas(4 * N) Words {
  uint32_t at[N];
};

template <class S>
__device__ inline S element(uint32_t word, int j) {
  return {uint16_t(word >> (16 * j))};
}
template <>
__device__ inline float element<float>(uint32_t word, int) {
  return __uint_as_float(word);
}

// The 32 bits that hold one float, or two narrower values.
__device__ inline uint32_t packed(const float* values, float) { return __float_as_uint(values[0]); }
__device__ inline uint32_t packed(const float* values, bfloat16) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(values[1]), "f"(values[0]));
  return word;
}
__device__ inline uint32_t packed(const float* values, float16) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(values[1]), "f"(values[0]));
  return word;
}

// One slot of a chunk: `base` is where the chunk begins, `at` counts from there.
template <class S>
struct Storage {
  int64_t base;

  static __device__ Storage of(int64_t address, int64_t first, int32_t = 0) {
    return {address + first * int64_t(sizeof(S))};
  }

  template <int V>
  __device__ void load(int32_t at, float* values) const {
    if constexpr (V == 1) {
      values[0] = widen(pointer<S>(at)[0]);
    } else {
      constexpr int words = kWords<V>, per_word = int(4 / sizeof(S));
#pragma unroll
      for (int i = 0; i < V; i += words * per_word) {
        const Words<words> held = *pointer<const Words<words>>(at + i);
#pragma unroll
        for (int j = 0; j < words * per_word; ++j)
          values[i + j] = widen(element<S>(held.at[j / per_word], j % per_word));
      }
    }
  }

  template <int V>
  __device__ void store(int32_t at, const float* values) const {
    if constexpr (V == 1) {
      narrow(values[0], pointer<S>(at)[0]);
    } else {
      constexpr int words = kWords<V>, per_word = int(4 / sizeof(S));
#pragma unroll
      for (int i = 0; i < V; i += words * per_word) {
        Words<words> held;
#pragma unroll
        for (int j = 0; j < words; ++j) held.at[j] = packed(values + i + j * per_word, S{});
        *pointer<Words<words>>(at + i) = held;
      }
    }
  }

 private:
  template <int V>
  static constexpr int kWords = V * sizeof(S) < 16 ? int(V * sizeof(S) / 4) : 4;
  template <class To>
  __device__ To* pointer(int32_t at) const {
    return memory_at<To>(base + int64_t(at) * int64_t(sizeof(S)));
  }
};

// Asks for the type at every access: the same for all threads, and cheap beside memory.
template <>
struct Storage<Mixed> {
  int64_t address, first;
  int32_t dtype;

  static __device__ Storage of(int64_t address, int64_t first, int32_t dtype) {
    return {address, first, dtype};
  }

  template <int V>
  __device__ void load(int32_t at, float* values) const {
    if (dtype == FLOAT32) return Storage<float>::of(address, first).template load<V>(at, values);
    if (dtype == BFLOAT16)
      return Storage<bfloat16>::of(address, first).template load<V>(at, values);
    Storage<float16>::of(address, first).template load<V>(at, values);
  }

  template <int V>
  __device__ void store(int32_t at, const float* values) const {
    if (dtype == FLOAT32) return Storage<float>::of(address, first).template store<V>(at, values);
    if (dtype == BFLOAT16)
      return Storage<bfloat16>::of(address, first).template store<V>(at, values);
    Storage<float16>::of(address, first).template store<V>(at, values);
  }
};

// Elements that a thread takes at once: 128 bits of the parameter.
template <class S>
constexpr int kElementsPerAccess = int(16 / sizeof(S));
template <>
constexpr int kElementsPerAccess<Mixed> = 4;

// Averaged weights are float32 beside any parameter, unless a checkpoint says otherwise.
template <class S>
struct AverageOf {
  using type = float;
};
template <>
struct AverageOf<Mixed> {
  using type = Mixed;
};

}  // namespace spectramind
