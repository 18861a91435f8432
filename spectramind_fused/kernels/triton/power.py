"""Powers in Triton, by the operations of csrc/power.h, which says why: both give the same bits."""

from __future__ import annotations

import triton
import triton.language as tl

_LN2_HIGH = tl.constexpr(float.fromhex("0x1.62e42fefa3800p-1"))
_LN2_LOW = tl.constexpr(float.fromhex("0x1.ef35793c76730p-45"))
_FIFTH_LOW = tl.constexpr(float.fromhex("-0x1.999999999999ap-57"))
_THIRD_LOW = tl.constexpr(float.fromhex("0x1.5555555555555p-56"))
_ROOT_OF_HALF = tl.constexpr(0x3FE6A09E667F3BCD)


@triton.jit
def power(base, exponent):
    """base**exponent by repeated squaring, as csrc does it: no library's pow rounds alike."""
    result = base * 0 + 1
    for _ in range(31):
        result = tl.where(exponent % 2 == 1, result * base, result)
        base = base * base
        exponent = exponent // 2
    return result


@triton.jit
def exact_sum(a, b):
    """The sum, and what it has lost in rounding."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@triton.jit
def exact_product(a, b):
    """The product, and what it has lost in rounding."""
    product = a * b
    return product, tl.fma(a, b, -product)


@triton.jit
def sum_of(a, a_low, b, b_low):
    """Of two numbers, each the sum of two."""
    high, low = exact_sum(a, b)
    return exact_sum(high, low + (a_low + b_low))


@triton.jit
def product_of(a, a_low, b, b_low):
    """Of two numbers, each the sum of two."""
    high, low = exact_product(a, b)
    return exact_sum(high, low + tl.fma(a, b_low, a_low * b))


@triton.jit
def logarithm(value):
    """ln(value), as the sum of two."""
    zero, one = value * 0, value * 0 + 1
    bits = value.to(tl.int64, bitcast=True)
    k = (bits - _ROOT_OF_HALF) >> 52
    m = (bits - (k << 52)).to(tl.float64, bitcast=True)
    divisor, divisor_low = exact_sum(m, one)
    quotient = (m - 1) / divisor
    left = tl.fma(-quotient, divisor, m - 1) - quotient * divisor_low
    s, s_low = exact_sum(quotient, left / divisor)
    square, square_low = product_of(s, s_low, s, s_low)
    rest = zero + 1.0 / 29
    for i in tl.static_range(11):
        rest = tl.fma(rest, square, zero + 1.0 / (27 - 2 * i))
    high, low = exact_product(square, rest)
    high, low = sum_of(zero + 0.2, zero + _FIFTH_LOW, high, low)
    high, low = product_of(square, square_low, high, low)
    high, low = sum_of(zero + 1.0 / 3, zero + _THIRD_LOW, high, low)
    high, low = product_of(square, square_low, high, low)
    high, low = sum_of(one, zero, high, low)
    high, low = product_of(2 * s, 2 * s_low, high, low)
    whole = k.to(tl.float64)
    return sum_of(whole * _LN2_HIGH, whole * _LN2_LOW, high, low)


@triton.jit
def power_of_two(exponent):
    """2**exponent of an integer, as long as that is a normal number."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def exponential(value, low):
    """e**(value + low)."""
    low = tl.where(tl.abs(value) < 800, low, 0.0)
    value = tl.maximum(tl.minimum(value, 800.0), -800.0)
    k = (value * 1.4426950408889634 + 6755399441055744.0) - 6755399441055744.0
    r, r_low = exact_sum(value - k * _LN2_HIGH, low - k * _LN2_LOW)
    one = value * 0 + 1
    rest = one
    for i in tl.static_range(13):
        rest = tl.fma(rest, r * (1.0 / (15 - i)), one)
    behind = r * r * 0.5 * rest + r_low * (1 + r)
    first, first_low = exact_sum(one, r)
    whole = k.to(tl.int64)
    half = whole >> 1
    return (first + (first_low + behind)) * power_of_two(half) * power_of_two(whole - half)


@triton.jit
def real_power(base, exponent):
    """base**exponent of any exponent, and a base that is not negative; tensors of float64."""
    y = tl.maximum(tl.minimum(exponent, 1e22), -1e22)
    log, log_low = logarithm(base)
    high, low = exact_product(y, log)
    high, low = exact_sum(high, tl.fma(y, log_low, low))
    result = exponential(high, low)
    edge = tl.where((base == 0) == (exponent > 0), 0.0, float("inf"))
    edge = tl.where((base >= 0) & (exponent == exponent), edge, float("nan"))
    edge = tl.where(exponent == 0, 1.0, edge)
    usual = (base > 0) & (base < float("inf")) & (exponent == exponent)
    return tl.where(usual, result, edge)
