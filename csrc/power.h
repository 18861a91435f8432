// Powers, in operations that round alike on every backend: no two libraries' pow do.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "portable.h"

namespace spectramind {

// base^exponent. For float32 parameters by repeated squaring. For float64 parameters by libm's pow,
// as in torch, because there the last bits of 1 - base^exponent show in the result.
template <class T>
SPECTRAMIND_HD inline double power(double base, int64_t exponent) {
  if (sizeof(T) == sizeof(double)) return std::pow(base, double(exponent));
  double result = 1.0;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// Numbers of twice the precision are the sums of two: the second, `low`, is what the first has lost
// in rounding.
SPECTRAMIND_HD inline double exact_sum(double a, double b, double& low) {
  const double sum = a + b, part = sum - a;
  low = (a - (sum - part)) + (b - part);
  return sum;
}

SPECTRAMIND_HD inline double exact_product(double a, double b, double& low) {
  const double product = a * b;
  low = std::fma(a, b, -product);
  return product;
}

SPECTRAMIND_HD inline double sum_of(double a, double a_low, double b, double b_low, double& low) {
  double lost;
  const double sum = exact_sum(a, b, lost);
  return exact_sum(sum, lost + (a_low + b_low), low);
}

SPECTRAMIND_HD inline double product_of(double a, double a_low, double b, double b_low,
                                        double& low) {
  double lost;
  const double product = exact_product(a, b, lost);
  return exact_sum(product, lost + std::fma(a, b_low, a_low * b), low);
}

SPECTRAMIND_HD inline int64_t bits_of(double value) {
  int64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

SPECTRAMIND_HD inline double with_bits(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// ln 2; its high part has room for a product with an exponent.
constexpr double kLn2High = 0x1.62e42fefa3800p-1, kLn2Low = 0x1.ef35793c76730p-45;

// ln(value) of a normal number: value = 2^k m with m in [sqrt(1/2), sqrt(2)), and
// ln(m) = 2 artanh(s) = 2 s (1 + s^2/3 + s^4/5 + ...) with s = (m - 1) / (m + 1).
SPECTRAMIND_HD inline double logarithm(double value, double& low) {
  constexpr int64_t root_of_half = 0x3fe6a09e667f3bcd;
  const int64_t k = (bits_of(value) - root_of_half) >> 52;
  const double m = with_bits(bits_of(value) - k * (int64_t(1) << 52));
  double divisor_low, s_low, square_low, series_low;
  const double divisor = exact_sum(m, 1, divisor_low), quotient = (m - 1) / divisor;
  const double left = std::fma(-quotient, divisor, m - 1) - quotient * divisor_low;
  const double s = exact_sum(quotient, left / divisor, s_low);
  const double square = product_of(s, s_low, s, s_low, square_low);
  double rest = 1.0 / 29;
  for (int odd = 27; odd >= 7; odd -= 2) rest = std::fma(rest, square, 1.0 / odd);
  double series = exact_product(square, rest, series_low);
  series = sum_of(1.0 / 5, -0x1.999999999999ap-57, series, series_low, series_low);
  series = product_of(square, square_low, series, series_low, series_low);
  series = sum_of(1.0 / 3, 0x1.5555555555555p-56, series, series_low, series_low);
  series = product_of(square, square_low, series, series_low, series_low);
  series = sum_of(1, 0, series, series_low, series_low);
  series = product_of(2 * s, 2 * s_low, series, series_low, series_low);
  return sum_of(double(k) * kLn2High, double(k) * kLn2Low, series, series_low, low);
}

// e^(value + low): value = k ln 2 + r with |r| <= ln(2) / 2, and
// e^r = 1 + r + r^2/2 (1 + r/3 (1 + ...)).
SPECTRAMIND_HD inline double exponential(double value, double low) {
  constexpr double most = 800;  // there the result is 0 or infinite
  if (!(std::fabs(value) < most)) low = 0;
  if (!(value < most)) value = most;
  if (!(value > -most)) value = -most;
  constexpr double whole_numbers = 6755399441055744;  // 1.5 * 2^52: from there on all are whole
  const double k = (value * 1.4426950408889634 + whole_numbers) - whole_numbers;
  double r_low, lost;
  const double r = exact_sum(value - k * kLn2High, low - k * kLn2Low, r_low);
  double rest = 1;
  for (int n = 15; n >= 3; --n) rest = std::fma(rest, r * (1.0 / n), 1.0);
  const double behind = r * r * 0.5 * rest + r_low * (1 + r), first = exact_sum(1, r, lost);
  const int64_t whole = int64_t(k), half = whole >> 1;  // 2^k itself may not be normal
  const double result = first + (lost + behind);
  return result * with_bits((half + 1023) << 52) * with_bits((whole - half + 1023) << 52);
}

// base^exponent of any exponent and a base that is not negative (of others a NaN; denormal ones are
// not served): within 1 unit in the last place.
SPECTRAMIND_HD inline double real_power(double base, double exponent) {
  constexpr double most = 1e22;  // the logarithm of a double is 0 or above 1e-17
  const double y = exponent < -most ? -most : exponent > most ? most : exponent;
  double log_low, low;
  const double log = logarithm(base, log_low);
  const double product = exact_product(y, log, low);
  const double sum = exact_sum(product, std::fma(y, log_low, low), low);
  const double result = exponential(sum, low);
  if (base > 0 && base < INFINITY && exponent == exponent) return result;
  if (exponent == 0) return 1;
  if (!(base >= 0) || exponent != exponent) return NAN;
  return (base == 0) == (exponent > 0) ? 0 : INFINITY;
}

}  // namespace spectramind
