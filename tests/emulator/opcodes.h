// The instructions that compute: opcode as written, types of its operands, meaning.
//
// Strict: what is not in the table is an error when it is reached. Only opcodes that Triton or
// nvcc was seen to emit for these kernels, or that a test covers, belong here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace emulator {

struct f16 {  // 16-bit floats stay patterns until they are widened
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};
struct pair {  // a 64-bit register that holds two floats
  float low, high;
};
struct two {  // what goes to two registers
  bool first, second;
};

// Computes all threads' values; arrays may be one and the same, but do not overlap otherwise.
using Function = void (*)(void* const* to, const void* const* from, int threads);

struct Opcode {
  std::string name, to, sources;  // kinds, separated by blanks
  Function run;
};

template <class T>
constexpr const char* kind_of() {
  if constexpr (std::is_same_v<T, bool>) return "pred";
  if constexpr (std::is_same_v<T, int8_t>) return "s8";
  if constexpr (std::is_same_v<T, int16_t>) return "s16";
  if constexpr (std::is_same_v<T, uint16_t>) return "u16";
  if constexpr (std::is_same_v<T, int32_t>) return "s32";
  if constexpr (std::is_same_v<T, uint32_t>) return "u32";
  if constexpr (std::is_same_v<T, int64_t>) return "s64";
  if constexpr (std::is_same_v<T, uint64_t>) return "u64";
  if constexpr (std::is_same_v<T, float>) return "f32";
  if constexpr (std::is_same_v<T, double>) return "f64";
  if constexpr (std::is_same_v<T, f16>) return "f16";
  if constexpr (std::is_same_v<T, bf16>) return "bf16";
  if constexpr (std::is_same_v<T, pair>) return "pair";
  if constexpr (std::is_same_v<T, two>) return "pred pred";
}

template <auto meaning, class Signature>
struct Each;

template <auto meaning, class R, class... A>
struct Each<meaning, R (*)(A...)> {
  static void run(void* const* to, const void* const* from, int threads) {
    run(to, from, threads, std::index_sequence_for<A...>{});
  }

  template <size_t... I>
  static void run(void* const* to, const void* const* from, int threads,
                  std::index_sequence<I...>) {
    if constexpr (std::is_same_v<R, two>) {
      for (int t = 0; t < threads; ++t) {
        const two both = meaning(static_cast<const A*>(from[I])[t]...);
        static_cast<bool*>(to[0])[t] = both.first;
        static_cast<bool*>(to[1])[t] = both.second;
      }
    } else {
      R* const out = static_cast<R*>(to[0]);
#pragma GCC ivdep
      for (int t = 0; t < threads; ++t) out[t] = meaning(static_cast<const A*>(from[I])[t]...);
    }
  }

  static std::string sources() {
    std::string all;
    for (const char* kind : {kind_of<A>()...}) all += (all.empty() ? "" : " ") + std::string(kind);
    return all;
  }
  static const char* destination() { return kind_of<R>(); }
};

// Arithmetic, rounded as the PTX manual says

inline float widen(bf16 value) {
  const uint32_t raw = uint32_t(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &raw, 4);
  return wide;
}

inline float widen(f16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7FFF;
  uint32_t raw;
  if (rest >= 0x7C00) {
    raw = 0x7F800000 | (rest & 0x3FF) << 13;
  } else if (rest >= 0x400) {
    raw = (rest << 13) + (112u << 23);
  } else {
    const float small = float(rest) * 0x1p-24f;
    std::memcpy(&raw, &small, 4);
  }
  raw |= sign;
  float wide;
  std::memcpy(&wide, &raw, 4);
  return wide;
}

inline bool is_nan(float value) { return value != value; }
inline bool is_nan(double value) { return value != value; }
inline bool is_nan(f16 value) { return (value.bits & 0x7FFF) > 0x7C00; }
inline bool is_nan(bf16 value) { return (value.bits & 0x7FFF) > 0x7F80; }

// To nearest even; NaN becomes 0x7fff, as the manual says.
template <class T>
T narrow(float value);

template <>
inline bf16 narrow<bf16>(float value) {
  uint32_t raw;
  std::memcpy(&raw, &value, 4);
  const uint32_t rounded = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16;
  return {uint16_t(is_nan(value) ? 0x7FFF : rounded)};
}

template <>
inline f16 narrow<f16>(float value) {
  uint32_t raw;
  std::memcpy(&raw, &value, 4);
  const uint32_t sign = raw >> 16 & 0x8000;
  raw &= 0x7FFFFFFF;
  const float size = std::fabs(value);
  if (is_nan(value)) return {0x7FFF};
  if (size >= 65520.0f) return {uint16_t(sign | 0x7C00)};
  if (size < 0x1p-14f) return {uint16_t(sign | uint32_t(std::nearbyintf(size * 0x1p24f)))};
  return {uint16_t(sign | (((raw + 0xFFF + (raw >> 13 & 1)) >> 13) - (112 << 10)))};
}

// The number where the other is NaN; -0 below +0.
template <class T>
T minimum(T a, T b) {
  if (is_nan(a)) return b;
  if (is_nan(b)) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}

template <class T>
T maximum(T a, T b) {
  if (is_nan(a)) return b;
  if (is_nan(b)) return a;
  return a > b || (a == b && std::signbit(b)) ? a : b;
}

// cvt.rzi: towards zero, saturating, NaN to 0.
template <class T, class F>
T to_integer(F value) {
  using Limits = std::numeric_limits<T>;
  const double wide = value, top = std::ldexp(1.0, Limits::digits);
  if (is_nan(wide)) return 0;
  if (wide >= top) return Limits::max();
  if (wide <= double(Limits::min())) return Limits::min();
  return T(wide);
}

// The sign of the dividend, as in C; by zero the hardware gives all ones.
template <class T>
T remainder(T a, T b) {
  if (b == 0) return T(-1);
  if (std::is_signed_v<T> && b == T(-1)) return 0;
  return T(a % b);
}

template <class T>
T quotient(T a, T b) {
  if (b == 0) return T(-1);
  if (std::is_signed_v<T> && b == T(-1)) return T(0 - uint64_t(a));
  return T(a / b);
}

// Four bytes out of eight, as the selector's nibbles say; a nibble's upper bit: only its sign.
inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 0xF, byte = bytes >> (8 * (nibble & 7)) & 0xFF;
    result |= (nibble & 8 ? (byte & 0x80 ? 0xFF : 0) : byte) << (8 * i);
  }
  return result;
}

template <class T>
T shift_left(T a, uint32_t by) {
  return by >= 8 * sizeof(T) ? T(0) : T(uint64_t(a) << by);
}

template <class T>
T shift_right(T a, uint32_t by) {
  if (by < 8 * sizeof(T)) return T(a >> by);
  return a < 0 ? T(-1) : T(0);
}

inline uint32_t extract_bits(uint32_t a, uint32_t start, uint32_t length) {
  start &= 0xFF, length &= 0xFF;
  if (start >= 32) return 0;
  const uint32_t moved = a >> start;
  return length >= 32 ? moved : moved & ((1u << length) - 1);
}

template <class T>
T halves(uint32_t whole, bool high) {
  return {uint16_t(high ? whole >> 16 : whole & 0xFFFF)};
}

template <class T>
T wrapping(uint64_t value) {  // arithmetic modulo a power of two, also of signed numbers
  return T(value);
}

class Table {
 public:
  std::vector<Opcode> opcodes;

  Table() {
    integers<int16_t>("s16"), integers<uint16_t>("u16"), integers<int32_t>("s32");
    integers<uint32_t>("u32"), integers<int64_t>("s64"), integers<uint64_t>("u64");
    negation<int16_t>("s16"), negation<int32_t>("s32"), negation<int64_t>("s64");
    wide_products<int16_t, int32_t>("s16"), wide_products<int32_t, int64_t>("s32");
    wide_products<uint32_t, uint64_t>("u32");
    bits<uint16_t>("b16"), bits<uint32_t>("b32"), bits<uint64_t>("b64"), predicates();
    moves();
    define<[](uint64_t a) { return a; }>("cvta.to.global.u64");  // global addresses are generic
    define<extract_bits>("bfe.u32");
    define<permuted>("prmt.b32");
    define<[](uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }>("mul.hi.u32");
    floats<float>("f32"), floats<double>("f64");
    sixteen_bits<f16>("f16"), sixteen_bits<bf16>("bf16");
    pairs();
    equality<uint16_t>("b16"), equality<uint32_t>("b32"), equality<uint64_t>("b64");
    conversions();
  }

 private:
  template <auto meaning>
  void define(const std::string& name) {
    using One = Each<meaning, decltype(+meaning)>;
    opcodes.push_back({name, One::destination(), One::sources(), One::run});
  }

  template <class T>
  void integers(const std::string& t) {
    define<[](T a, T b) { return wrapping<T>(uint64_t(a) + uint64_t(b)); }>("add." + t);
    define<[](T a, T b) { return wrapping<T>(uint64_t(a) - uint64_t(b)); }>("sub." + t);
    define<[](T a, T b) { return wrapping<T>(uint64_t(a) * uint64_t(b)); }>("mul.lo." + t);
    define<[](T a, T b, T c) { return wrapping<T>(uint64_t(a) * uint64_t(b) + uint64_t(c)); }>(
        "mad.lo." + t);
    define<[](T a, T b) { return a < b ? a : b; }>("min." + t);
    define<[](T a, T b) { return b < a ? a : b; }>("max." + t);
    define<remainder<T>>("rem." + t);
    define<quotient<T>>("div." + t);
    define<shift_right<T>>("shr." + t);
    equality<T>(t);
    order<T>(t);
  }

  template <class T>
  void negation(const std::string& t) {
    define<[](T a) { return wrapping<T>(0 - uint64_t(a)); }>("neg." + t);
  }

  template <class T, class Wide>
  void wide_products(const std::string& t) {
    define<[](T a, T b) { return Wide(Wide(a) * Wide(b)); }>("mul.wide." + t);
    define<[](T a, T b, Wide c) {
      return wrapping<Wide>(uint64_t(Wide(a) * Wide(b)) + uint64_t(c));
    }>("mad.wide." + t);
  }

  template <class T>
  void bits(const std::string& t) {
    define<[](T a, T b) { return T(a & b); }>("and." + t);
    define<[](T a, T b) { return T(a | b); }>("or." + t);
    define<[](T a, T b) { return T(a ^ b); }>("xor." + t);
    define<[](T a) { return T(~a); }>("not." + t);
    define<shift_left<T>>("shl." + t);
  }

  void predicates() {
    define<[](bool a, bool b) { return a && b; }>("and.pred");
    define<[](bool a, bool b) { return a || b; }>("or.pred");
    define<[](bool a, bool b) { return a != b; }>("xor.pred");
    define<[](bool a) { return !a; }>("not.pred");
    define<[](bool a) { return a; }>("mov.pred");
  }

  template <class T>
  void move(const std::string& t) {
    define<[](T a) { return a; }>("mov." + t);
  }

  template <class T>
  void select(const std::string& t) {
    define<[](T a, T b, bool first) { return first ? a : b; }>("selp." + t);
  }

  void moves() {
    move<uint16_t>("b16"), move<uint32_t>("b32"), move<uint64_t>("b64"), move<uint16_t>("u16");
    move<uint32_t>("u32"), move<uint64_t>("u64"), move<int32_t>("s32"), move<float>("f32");
    move<double>("f64");
    select<uint16_t>("b16"), select<uint32_t>("b32"), select<uint64_t>("b64");
    select<uint16_t>("u16"), select<uint32_t>("u32"), select<uint64_t>("u64");
    select<int32_t>("s32"), select<int64_t>("s64"), select<float>("f32"), select<double>("f64");
  }

  template <class T>
  void floats(const std::string& t) {
    for (const char* rounding : {".rn.", "."}) {
      // Without .rn ptxas may contract it with a neighbour: here it never does.
      define<[](T a, T b) { return a + b; }>("add" + (rounding + t));
      define<[](T a, T b) { return a - b; }>("sub" + (rounding + t));
      define<[](T a, T b) { return a * b; }>("mul" + (rounding + t));
    }
    define<[](T a, T b) { return a / b; }>("div.rn." + t);
    define<[](T a) { return T(1) / a; }>("rcp.rn." + t);
    define<[](T a) { return std::sqrt(a); }>("sqrt.rn." + t);
    define<[](T a, T b, T c) { return std::fma(a, b, c); }>("fma.rn." + t);
    define<[](T a) { return -a; }>("neg." + t);
    define<[](T a) { return std::fabs(a); }>("abs." + t);
    define<[](T sign, T value) { return std::copysign(value, sign); }>("copysign." + t);
    define<minimum<T>>("min." + t);
    define<maximum<T>>("max." + t);
    // Of three values (sm_100): in the text they have the name of those of two.
    define<[](T a, T b, T c) { return minimum(minimum(a, b), c); }>("min.3." + t);
    define<[](T a, T b, T c) { return maximum(maximum(a, b), c); }>("max.3." + t);
    order<T>(t);
    define<[](T a, T b) { return a == b; }>("setp.eq." + t);
    define<[](T a, T b) { return a < b || b < a; }>("setp.ne." + t);
    define<[](T a, T b) { return !(a < b || b < a); }>("setp.equ." + t);
    define<[](T a, T b) { return a != b; }>("setp.neu." + t);
    define<[](T a, T b) { return !(b <= a); }>("setp.ltu." + t);
    define<[](T a, T b) { return !(b < a); }>("setp.leu." + t);
    define<[](T a, T b) { return !(a <= b); }>("setp.gtu." + t);
    define<[](T a, T b) { return !(a < b); }>("setp.geu." + t);
    define<[](T a, T b) { return is_nan(a) || is_nan(b); }>("setp.nan." + t);
    define<[](T a, T b) { return !is_nan(a) && !is_nan(b); }>("setp.num." + t);
  }

  template <class T>
  void order(const std::string& t) {
    define<[](T a, T b) { return a < b; }>("setp.lt." + t);
    define<[](T a, T b) { return a <= b; }>("setp.le." + t);
    define<[](T a, T b) { return b < a; }>("setp.gt." + t);
    define<[](T a, T b) { return b <= a; }>("setp.ge." + t);
  }

  template <class T>
  void equality(const std::string& t) {
    define<[](T a, T b) { return a == b; }>("setp.eq." + t);
    define<[](T a, T b) { return a != b; }>("setp.ne." + t);
  }

  template <class T>
  void sixteen_bits(const std::string& t) {
    // The sign is a bit, also of a NaN.
    define<[](T a) { return T{uint16_t(a.bits & 0x7FFF)}; }>("abs." + t);
    define<[](uint32_t a) { return a & 0x7FFF7FFF; }>("abs." + t + "x2");
    define<[](T a, T b) { return is_nan(a) || is_nan(b); }>("setp.nan." + t);
    define<[](T a, T b) {
      const float left = widen(a), right = widen(b);
      return left < right || right < left;
    }>("setp.ne." + t);
    define<[](uint32_t a, uint32_t b) {
      return two{is_nan(halves<T>(a, false)) || is_nan(halves<T>(b, false)),
                 is_nan(halves<T>(a, true)) || is_nan(halves<T>(b, true))};
    }>("setp.nan." + t + "x2");
    for (const char* rounding : {".rn", ""})  // sm_100: a sum of mixed width
      define<[](T a, float b) { return widen(a) + b; }>("add" + (rounding + (".f32." + t)));
    define<[](T a) { return widen(a); }>("cvt.f32." + t);
    define<[](T a) { return double(widen(a)); }>("cvt.f64." + t);
    define<narrow<T>>("cvt.rn." + t + ".f32");
    define<[](float a, float b) {  // the first source goes into the upper half
      return uint32_t(narrow<T>(a).bits) << 16 | narrow<T>(b).bits;
    }>("cvt.rn." + t + "x2.f32");
  }

  void pairs() {  // sm_100
    for (const char* rounding : {".rn", ""}) {
      const auto name = [&](const char* op) { return op + (rounding + std::string(".f32x2")); };
      define<[](pair a, pair b) { return pair{a.low + b.low, a.high + b.high}; }>(name("add"));
      define<[](pair a, pair b) { return pair{a.low - b.low, a.high - b.high}; }>(name("sub"));
      define<[](pair a, pair b) { return pair{a.low * b.low, a.high * b.high}; }>(name("mul"));
    }
    define<[](pair a, pair b, pair c) {
      return pair{std::fma(a.low, b.low, c.low), std::fma(a.high, b.high, c.high)};
    }>("fma.rn.f32x2");
  }

  template <class To, class From>
  void convert(const std::string& name) {
    define<[](From a) { return To(a); }>("cvt." + name);
  }

  template <class From>
  void to_floats(const std::string& t) {
    convert<float, From>("rn.f32." + t), convert<double, From>("rn.f64." + t);
  }

  template <class To>
  void to_integers(const std::string& t) {
    define<to_integer<To, float>>("cvt.rzi." + t + ".f32");
    define<to_integer<To, double>>("cvt.rzi." + t + ".f64");
  }

  void conversions() {
    convert<uint16_t, uint32_t>("u16.u32"), convert<uint32_t, uint64_t>("u32.u64");
    convert<uint64_t, uint32_t>("u64.u32"), convert<uint32_t, uint16_t>("u32.u16");
    convert<int64_t, int32_t>("s64.s32"), convert<int32_t, int64_t>("s32.s64");
    convert<uint64_t, uint16_t>("u64.u16"), convert<uint16_t, uint64_t>("u16.u64");
    convert<int32_t, int16_t>("s32.s16"), convert<int16_t, int8_t>("s16.s8");
    // A register has no 8 bits: the sign goes on.
    define<[](int32_t a) { return int16_t(int8_t(a)); }>("cvt.s8.s32");
    to_floats<int16_t>("s16"), to_floats<uint16_t>("u16"), to_floats<int32_t>("s32"),
        to_floats<uint32_t>("u32");
    to_floats<int64_t>("s64"), to_floats<uint64_t>("u64");
    to_integers<int32_t>("s32"), to_integers<uint32_t>("u32"), to_integers<int64_t>("s64");
    to_integers<uint64_t>("u64");
    convert<float, double>("rn.f32.f64"), convert<double, float>("f64.f32");
  }
};

}  // namespace emulator
