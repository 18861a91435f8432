"""Fused multiply-adds in numpy: a * b + c, rounded once."""

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
    held = np.isfinite(result) & (np.abs(high) > 1e-250) & (np.abs(result) > 1e-250)
    nothing = (a == 0) | (b == 0)
    result = np.where(nothing, high + c, result)
    beyond = ~(held | nothing)
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
