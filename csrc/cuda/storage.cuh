// How values get into float32 registers and back: the storage axis on NVIDIA GPUs.
//
// A thread moves V consecutive elements, by accesses of up to 128 bits where V > 1, for which the
// address must be one of 16-byte alignment. Plain types are rounded to nearest even; storages.h has
// the others.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../random.h"
#include "../storages.h"
#include "../tables.h"
#include "../walk.h"

namespace spectramind {

struct bfloat16 {
  uint16_t raw;
};
struct float16 {
  uint16_t raw;
};
struct Mixed;  // slots of several plain types, which are known when the kernel runs
template <int Kinds>
struct AnyOf;  // a slot of any plain type, and of some kinds of others, likewise

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

// What the slots of a chunk have in common, of those that are not plain.
struct Context {
  int64_t first;  // element of the tensor
  Place place;
  Draw draw;  // its stream is set at each use
  bool in_eighths;
  bool trusted;   // whether remainders belong to what is in the parameter
  bool aligned;   // all addresses are
  int32_t count;  // elements of the chunk
  uint32_t sum;   // of checks of what this thread has split
};

// One slot of a chunk: `base` is where the chunk begins, `at` counts from there.
template <class S>
struct Storage {
  int64_t base;

  static __device__ Storage of(int64_t address, int64_t first, int32_t = 0, int64_t = 0) {
    return {address + first * int64_t(sizeof(S))};
  }

  template <int V>
  __device__ void load(int32_t at, float* values, const Context&) const {
    load<V>(at, values);
  }
  template <int V>
  __device__ void store(int32_t at, const float* values, Context&, uint32_t) const {
    store<V>(at, values);
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

  static __device__ Storage of(int64_t address, int64_t first, int32_t dtype, int64_t = 0) {
    return {address, first, dtype};
  }

  template <int V>
  __device__ void load(int32_t at, float* values, const Context&) const {
    if (dtype == FLOAT32) return Storage<float>::of(address, first).template load<V>(at, values);
    if (dtype == BFLOAT16)
      return Storage<bfloat16>::of(address, first).template load<V>(at, values);
    Storage<float16>::of(address, first).template load<V>(at, values);
  }

  template <int V>
  __device__ void store(int32_t at, const float* values, Context&, uint32_t) const {
    if (dtype == FLOAT32) return Storage<float>::of(address, first).template store<V>(at, values);
    if (dtype == BFLOAT16)
      return Storage<bfloat16>::of(address, first).template store<V>(at, values);
    Storage<float16>::of(address, first).template store<V>(at, values);
  }
};

// Up to V values of a type as they lie: by one access, where all are there and aligned.
template <int V, class T>
struct alignas(V * sizeof(T)) Access {
  T at[V];
};
template <int V, class T>
__device__ inline void load_raw(const Context& context, int64_t address, int32_t at, T* values) {
  const int64_t from = address + (context.first + at) * int64_t(sizeof(T));
  if (context.aligned && at + V <= context.count) {
    const Access<V, T> held = *memory_at<const Access<V, T>>(from);
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = held.at[i];
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      values[i] = at + i < context.count ? memory_at<const T>(from)[i] : T(0);
  }
}
template <int V, class T>
__device__ inline void store_raw(const Context& context, int64_t address, int32_t at,
                                 const T* values) {
  const int64_t to = address + (context.first + at) * int64_t(sizeof(T));
  if (context.aligned && at + V <= context.count) {
    Access<V, T> held;
#pragma unroll
    for (int i = 0; i < V; ++i) held.at[i] = values[i];
    *memory_at<Access<V, T>>(to) = held;
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (at + i < context.count) memory_at<T>(to)[i] = values[i];
  }
}

// 16 random bits for each of four elements: by one call, where eight of the whole share one.
__device__ inline void draw_four(const Context& context, uint32_t stream, int32_t at,
                                 uint32_t* random) {
  Draw draw = context.draw;
  draw.stream = stream;
  const int64_t first = context.first + at;
  if (context.in_eighths) {
    const int64_t element = context.place.offset + first;
    uint32_t words[4] = {uint32_t(uint64_t(element) / kElementsPerCall), draw.step, draw.parameter,
                         stream};
    philox(words, draw.key[0], draw.key[1]);
    const bool upper = element % kElementsPerCall != 0;
    const uint32_t pair[2] = {upper ? words[2] : words[0], upper ? words[3] : words[1]};
#pragma unroll
    for (int i = 0; i < 4; ++i) random[i] = pair[i / 2] >> (i % 2 * 16) & 0xffffu;
  } else {
    uint64_t packed = 0;
#pragma unroll 1
    for (int i = 0; i < 4; ++i)
      packed |= uint64_t(random16(draw, context.place(first + i))) << (16 * i);
#pragma unroll
    for (int i = 0; i < 4; ++i) random[i] = uint32_t(packed >> (16 * i)) & 0xffffu;
  }
}

// The largest of a group: of the threads that hold its elements, four each.
__device__ inline uint32_t largest_of_group(uint32_t value) {
#pragma unroll
  for (int distance = kGroup / 4 / 2; distance > 0; distance /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffff, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

// What a slot may be stored in, beside a plain type: a gradient in none of these.
enum Kinds { STOCHASTICALLY = 1, WITH_MASTER = 2, IN_EIGHT = 4 };
using Any = AnyOf<0>;
using AnyParam = AnyOf<STOCHASTICALLY | WITH_MASTER>;
using AnyState = AnyOf<STOCHASTICALLY | IN_EIGHT>;
using AnyWeights = AnyOf<STOCHASTICALLY>;

// Its storage is asked for at every access: of four elements, of which those from `Context::count`
// on are not there.
template <int Kinds>
struct Storage<AnyOf<Kinds>> {
  int64_t own, beside;
  int32_t stored;

  static __device__ Storage of(int64_t address, int64_t, int32_t stored, int64_t beside) {
    return {address, beside, stored};
  }

  template <int V>
  __device__ void load(int32_t at, float* values, const Context& context) const {
    if (stored == FLOAT32) return load_raw<V>(context, own, at, values);
    if ((Kinds & IN_EIGHT) && stored >= SIGNED8) {
      const float scale = at < context.count ? widen(*scale_at(context, at)) : 0.0f;
      uint8_t codes[V];
      load_raw<V>(context, own, at, codes);
#pragma unroll
      for (int i = 0; i < V; ++i)
        values[i] = stored == SIGNED8 ? from_signed8(int8_t(codes[i]), scale)
                                      : from_unsigned8(codes[i], scale);
      return;
    }
    uint16_t raw[V];
    load_raw<V>(context, own, at, raw);
#pragma unroll
    for (int i = 0; i < V; ++i)
      values[i] = is_half() ? widen(float16{raw[i]}) : widen(bfloat16{raw[i]});
    if (!(Kinds & WITH_MASTER)) return;
    if (stored == SPLIT_BFLOAT16 && context.trusted) {
      int16_t remainders[V];
      load_raw<V>(context, beside, at, remainders);
#pragma unroll
      for (int i = 0; i < V; ++i) values[i] = join(raw[i], remainders[i]);
    } else if (stored >= MASTER_BFLOAT16) {
      float master[V];
      load_raw<V>(context, beside, at, master);
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (nearest(master[i]) == raw[i]) values[i] = master[i];
    }
  }

  template <int V>
  __device__ void store(int32_t at, const float* values, Context& context, uint32_t stream) const {
    if (stored == FLOAT32) return store_raw<V>(context, own, at, values);
    uint32_t random[V];
    if (Kinds && is_random(stored)) draw_four(context, stream, at, random);
    if ((Kinds & IN_EIGHT) && stored >= SIGNED8) return store_codes<V>(at, values, random, context);
    uint16_t raw[V];
    if ((Kinds & WITH_MASTER) && stored == SPLIT_BFLOAT16) {
      int16_t remainders[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        raw[i] = upper_of(values[i]);
        remainders[i] = remainder_of(values[i]);
        if (at + i < context.count) context.sum += check_of(raw[i], context.first + at + i);
      }
      store_raw<V>(context, beside, at, remainders);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        raw[i] = Kinds && stored == STOCHASTIC_BFLOAT16  ? stochastic_bfloat16(values[i], random[i])
                 : Kinds && stored == STOCHASTIC_FLOAT16 ? stochastic_float16(values[i], random[i])
                                                         : nearest(values[i]);
      if ((Kinds & WITH_MASTER) && stored >= MASTER_BFLOAT16)
        store_raw<V>(context, beside, at, values);
    }
    store_raw<V>(context, own, at, raw);
  }

 private:
  __device__ bool is_half() const {
    return stored == FLOAT16 || stored == STOCHASTIC_FLOAT16 || stored == MASTER_FLOAT16;
  }

  __device__ uint16_t nearest(float value) const {
    bfloat16 upper;
    float16 half;
    narrow(value, upper);
    narrow(value, half);
    return is_half() ? half.raw : upper.raw;
  }

  __device__ bfloat16* scale_at(const Context& context, int32_t at) const {
    return memory_at<bfloat16>(beside) + (context.first + at) / kGroup;
  }

  template <int V>
  __device__ void store_codes(int32_t at, const float* values, const uint32_t* random,
                              const Context& context) const {
    float scaled[V];
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      scaled[i] = stored == SIGNED8 ? values[i] : std::sqrt(values[i]);
      const uint32_t magnitude = at + i < context.count ? finite_magnitude(scaled[i]) : 0;
      largest = magnitude > largest ? magnitude : largest;
    }
    const bfloat16 scale{scale_of(largest_of_group(largest))};
    uint8_t codes[V];
#pragma unroll
    for (int i = 0; i < V; ++i)
      codes[i] = stored == SIGNED8 ? uint8_t(to_signed8(scaled[i], widen(scale), random[i]))
                                   : to_unsigned8(scaled[i], widen(scale), random[i]);
    store_raw<V>(context, own, at, codes);
    if (at < context.count && at % kGroup == 0) *scale_at(context, at) = scale;
  }
};

// What an element's place is divided by: a division of the first place of a chunk, and of others,
// counted from there, a multiplication or a comparison.
struct Divisor {
  int64_t first;  // the first place's quotient
  int32_t rest;   // its remainder; of a large divisor how far it is to the next quotient
  uint32_t inverse;
  bool large, one;

  static __device__ Divisor of(int64_t first, int64_t by) {
    const int64_t quotient = first / by, rest = first - quotient * by;
    const bool large = by >= kPiece;
    const int64_t left = by - rest < kPiece ? by - rest : kPiece;
    const uint32_t few = uint32_t(large ? kPiece : by);
    return {quotient, int32_t(large ? left : rest), uint32_t(((uint64_t(1) << 32) + few - 1) / few),
            large, by == 1};
  }
  __device__ int32_t quotient(int32_t at) const {  // how many more
    if (large) return at >= rest;
    return one ? at : int32_t(__umulhi(uint32_t(rest + at), inverse));
  }
};

// A slot that is the product of two vectors (factored.h), which is not written.
struct Product;
template <>
struct Storage<Product> {
  int64_t outer, inner, line_first, within_first, within, line;
  Divisor stretches, withins, lines, matrices;
  int32_t count;

  static __device__ Storage of(const int64_t* layout, int64_t outer, int64_t inner,
                               const Chunk& chunk) {
    const int64_t within = layout[WITHIN], stretch = layout[INNER] * within;
    const int64_t line = layout[BETWEEN] * stretch;
    return {outer,
            inner,
            chunk.first % line,
            chunk.first % within,
            within,
            line,
            Divisor::of(chunk.first, stretch),
            Divisor::of(chunk.first, within),
            Divisor::of(chunk.first, line),
            Divisor::of(chunk.first, layout[OUTER] * line),
            int32_t(chunk.last - chunk.first)};
  }

  template <int V>
  __device__ void load(int32_t at, float* values, const Context&) const {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int32_t k = at + i;
      const int64_t of_outer = (stretches.first + stretches.quotient(k)) * within + within_first +
                               k - withins.quotient(k) * within;
      const int64_t of_inner = (matrices.first + matrices.quotient(k)) * line + line_first + k -
                               lines.quotient(k) * line;
      values[i] = 0;
      if (k < count)
        values[i] = memory_at<float>(outer)[of_outer] * memory_at<float>(inner)[of_inner];
    }
  }
  template <int V>
  __device__ void store(int32_t, const float*, Context&, uint32_t) const {}
};

// Elements that a thread takes at once: 128 bits of the parameter.
template <class S>
constexpr int kElementsPerAccess = int(16 / sizeof(S));
template <>
constexpr int kElementsPerAccess<Mixed> = 4;
template <>
constexpr int kElementsPerAccess<Any> = 4;

// Of a kernel for parameters in S, the storages of its slots. Averaged weights are float32 beside
// any parameter, unless a checkpoint says otherwise.
template <class S>
struct SlotsOf {
  using Param = S;
  using State = S;
  using Slow = S;
  using Average = float;
};
template <>
struct SlotsOf<Mixed> {
  using Param = Mixed;
  using State = Mixed;
  using Slow = Mixed;
  using Average = Mixed;
};
template <>
struct SlotsOf<Any> {
  using Param = AnyParam;
  using State = AnyState;
  using Slow = AnyWeights;
  using Average = AnyWeights;
};

template <class Rule, class S>
using StateOf = std::conditional_t<is_factored<Rule>, Product, typename SlotsOf<S>::State>;

// Finds a slot of a chunk by its address, and joins that to the low bits of all: is one unaligned?
template <class S, class Slot>
__device__ inline void place_slot(Storage<Slot>& slot, const Tables& t, const int32_t* stored,
                                  const Chunk& chunk, int row, int64_t address,
                                  int64_t& addresses) {
  const auto beside_at = [&](int which) {
    return t.pointers[(row_beside(t, stored, row) + which) * t.tensors + chunk.tensor];
  };
  if constexpr (std::is_same_v<Slot, Product>) {
    slot =
        Storage<Product>::of(memory_at<const int64_t>(beside_at(1)), address, beside_at(0), chunk);
  } else {
    addresses |= address;
    int64_t beside = 0;
    if constexpr (std::is_same_v<S, Any>) {
      if (rows_beside(stored[row])) {
        beside = beside_at(0);
        if (stored[row] < SIGNED8) addresses |= beside;
      }
    }
    slot = slot.of(address, chunk.first, stored[row], beside);
  }
}

}  // namespace spectramind
