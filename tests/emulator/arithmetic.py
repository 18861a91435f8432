"""What PTX instructions compute, in numpy, rounded as the PTX manual says."""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np

Array = np.ndarray

_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.fma.argtypes = [ctypes.c_double] * 3
_libm.fma.restype = ctypes.c_double


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once, from sums and products whose errors are known.

    Source: Boldo and Melquiond, Emulation of FMA and correctly rounded sums (2008). Where that
    overflows, or an error is too small to be held, it is libm's, one by one.
    """
    high, low = _product(a, b)
    of_low, least = _sum(c, low)
    total, rest = _sum(high, of_low)
    result = total + _sum_to_odd(least, rest)
    beyond = ~(np.isfinite(result) & (np.abs(high) > 1e-250) & (np.abs(result) > 1e-250))
    rows = zip(a[beyond], b[beyond], c[beyond], strict=True)
    result[beyond] = [_libm.fma(*map(float, row)) for row in rows]
    return result


def fma_f32(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once: exact product in f64, sum rounded to odd, then to f32."""
    product = a.astype(np.float64) * b.astype(np.float64)
    return _sum_to_odd(product, c.astype(np.float64)).astype(np.float32)


def _sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b in f64, and what it lost."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _product(a: Array, b: Array) -> tuple[Array, Array]:
    """a * b in f64, and what it lost (Dekker's, by halves of 26 bits)."""
    product = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _halves(a: Array) -> tuple[Array, Array]:
    scaled = a * 134217729.0  # 2**27 + 1
    high = scaled - (scaled - a)
    return high, a - high


def _sum_to_odd(a: Array, b: Array) -> Array:
    """a + b, where it is inexact rounded to the neighbour with an odd last bit."""
    total, lost = _sum(a, b)
    bits = total.view(np.int64)
    inexact = (lost != 0) & np.isfinite(total) & (bits & 1 == 0)
    away = (lost > 0) == (total > 0)
    return np.where(inexact, np.where(away, bits + 1, bits - 1), bits).view(np.float64)


def widen_bf16(raw: Array) -> Array:
    """The floats that 16-bit patterns of bfloat16 stand for."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def widen_f16(raw: Array) -> Array:
    """The floats that 16-bit patterns of float16 stand for."""
    return raw.view(np.float16).astype(np.float32)


def wide_product(to: type, a: Array, b: Array, c: Array | int = 0) -> Array:
    """mul.wide, and with a third operand mad.wide: the product in twice the width."""
    return a.astype(to) * b.astype(to) + (c if isinstance(c, np.ndarray) else to(c))


def narrow_bf16(values: Array) -> Array:
    """Rounds to bfloat16, to nearest even; NaN becomes 0x7fff, as the manual says."""
    raw = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    rounded = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def narrow_f16(values: Array) -> Array:
    """Rounds to float16, to nearest even; NaN becomes 0x7fff."""
    half = values.astype(np.float16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), half.view(np.uint16)).astype(np.uint16)


def to_integer(values: Array, dtype: type) -> Array:
    """cvt.rzi: towards zero, saturating, NaN to 0."""
    info = np.iinfo(dtype)
    truncated = np.trunc(np.nan_to_num(values.astype(np.float64), nan=0.0))
    high, low = truncated >= float(info.max), truncated <= float(info.min)
    inside = np.where(high | low, 0.0, truncated).astype(dtype)
    return np.where(high, info.max, np.where(low, info.min, inside)).astype(dtype)


def remainder(a: Array, b: Array) -> Array:
    """rem: the sign of the dividend, as in C; by zero the hardware gives all ones."""
    safe = np.where(b == 0, 1, b)
    return np.where(b == 0, np.array(-1).astype(a.dtype), np.fmod(a, safe)).astype(a.dtype)


def shift_left(a: Array, by: Array) -> Array:
    """shl: shifts of the width or more give zero."""
    width = a.dtype.itemsize * 8
    return np.where(by >= width, 0, a << np.minimum(by, width - 1).astype(a.dtype)).astype(a.dtype)


def shift_right(a: Array, by: Array) -> Array:
    """shr: logical or arithmetic by the type; shifts are clamped to the width."""
    width = a.dtype.itemsize * 8
    far = a >> np.array(width - 1, a.dtype) if a.dtype.kind == "i" else np.zeros_like(a)
    return np.where(by >= width, far, a >> np.minimum(by, width - 1).astype(a.dtype))


def minimum(a: Array, b: Array) -> Array:
    """min of floats: the number where the other is NaN, -0 below +0."""
    lower = np.where(np.signbit(a), a, b)
    return np.where(a == b, lower, np.fmin(a, b))


def maximum(a: Array, b: Array) -> Array:
    """max of floats: the number where the other is NaN, +0 above -0."""
    higher = np.where(np.signbit(a), b, a)
    return np.where(a == b, higher, np.fmax(a, b))
