"""Each opcode against a scalar model: Python integers, and floats rounded by struct."""

import bisect
import ctypes
import ctypes.util
import itertools
import math
import struct

import numpy as np
import pytest

from tests.emulator import native
from tests.emulator.decode import table
from tests.fma import fma_f32

DTYPES = {f"{sign}{n}": np.dtype(f"{name}{n}") for sign, name in (("s", "int"), ("u", "uint"))
          for n in (8, 16, 32, 64)}  # fmt: skip
DTYPES |= {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64), "pred": np.dtype(bool)}
DTYPES |= {"f16": np.dtype(np.uint16), "bf16": np.dtype(np.uint16)}

libm = ctypes.CDLL(ctypes.util.find_library("m"))
libm.fmaf.argtypes, libm.fmaf.restype = [ctypes.c_float] * 3, ctypes.c_float
libm.fma.argtypes, libm.fma.restype = [ctypes.c_double] * 3, ctypes.c_double

NAN, INF = math.nan, math.inf
F32 = [0.0, -0.0, 1.0, -1.5, 3.0, 1e-45, -1e-38, 1.17549435e-38, 3.4028235e38, INF, -INF, NAN]
F32 += [0.1, 16777217.0, -2.5, 65504.0, 65520.0, 6.1e-5, 5.9604645e-08, 1.00390625, 1.01171875]
F64 = [*F32, 1e-320, 1.7976931348623157e308, 0.1 + 2**-50, 2.5, -3.5, 9.2e18, -9.3e18, 1.9e19]


def f32(value):
    """Rounds a double to float32; struct refuses what overflows."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(INF, value)


def integers(kind):
    bits, signed = int(kind[1:]), kind[0] == "s"
    edges = {0, 1, 2, 3, 7, 31, 32, 63, 64, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1}
    values = sorted(value % 2**bits for value in edges)
    return [v - 2**bits if signed and v >= 2 ** (bits - 1) else v for v in values]


def wrap(value, kind):
    bits = int(kind[1:])
    value %= 2**bits
    return value - 2**bits if kind[0] == "s" and value >= 2 ** (bits - 1) else value


def rounded(kind):
    return f32 if kind == "f32" else float


def divide(a, b):
    if math.isnan(a) or math.isnan(b) or (a == 0 == b) or (math.isinf(a) and math.isinf(b)):
        return NAN
    if b == 0:
        return math.copysign(INF, a) * math.copysign(1, b)
    return a / b


def multiply(a, b):
    return NAN if {abs(a), abs(b)} == {0.0, INF} else a * b


def extreme(pick, a, b):
    """min and max: the number beside a NaN, and -0 below +0."""
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return pick((a, b), key=lambda v: (v, math.copysign(1, v)))


def truncated(value, kind):
    if math.isnan(value):
        return 0
    bits, signed = int(kind[1:]), kind[0] == "s"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return (
        max(low, min(high, int(value))) if not math.isinf(value) else (high if value > 0 else low)
    )


def to_16(value, kind):
    """The pattern of a float16 or bfloat16, by comparing with its two neighbours."""
    if math.isnan(value):
        return 0x7FFF
    magnitude = abs(value)
    table = _tables[kind]
    at = bisect.bisect_left(table, magnitude)
    if at and at < len(table) and table[at] != magnitude:
        top = table[at] if not math.isinf(table[at]) else 2 * table[at - 1] - table[at - 2]
        low, high = magnitude - table[at - 1], top - magnitude
        at = at - 1 if low < high or (low == high and (at - 1) % 2 == 0) else at
    at = min(at, len(table) - 1)
    return at | (0x8000 if math.copysign(1, value) < 0 else 0)


def from_16(pattern, kind):
    if kind == "f16":
        return struct.unpack("<e", struct.pack("<H", pattern))[0]
    return struct.unpack("<f", struct.pack("<I", pattern << 16))[0]


_tables = {
    "f16": [from_16(p, "f16") for p in range(0x7C01)],
    "bf16": [from_16(p, "bf16") for p in range(0x7F81)],
}

COMPARE = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


def model(name):
    """The scalar meaning of an opcode, from its name alone."""
    op, *rest = name.split(".")
    kind = rest[-1]
    floats = kind in ("f32", "f64")
    if op in ("add", "sub", "mul", "fma") and kind in ("f32x2",):
        return model(name.removesuffix("x2"))
    if op == "add" and kind in ("f16", "bf16"):
        return lambda a, b: f32(from_16(a, kind) + b)
    if op == "abs" and kind in ("f16", "bf16"):
        return lambda a: a - 0x8000 if a >= 0x8000 else a
    if op == "abs" and kind.endswith("x2"):
        half = model(name.removesuffix("x2"))
        return lambda a: half(a >> 16) << 16 | half(a & 0xFFFF)
    if op == "cvta":
        return lambda a: a
    if op == "bfe":
        return extracted
    if op == "prmt":
        return permuted
    if op == "setp":
        return compare_model(rest[0], kind)
    if op == "cvt":
        return convert_model(rest)
    if rest[0] == "3":
        two = model(f"{op}.{kind}")
        return lambda a, b, c: two(two(a, b), c)
    if floats:
        to = rounded(kind)
        return {
            "add": lambda a, b: to(a + b) if not math.isnan(a + b) else NAN,
            "sub": lambda a, b: to(a - b),
            "mul": lambda a, b: to(multiply(a, b)),
            "div": lambda a, b: to(divide(a, b)),
            "rcp": lambda a: to(divide(1.0, a)),
            "sqrt": lambda a: to(math.sqrt(a)) if a >= 0 else NAN,
            "fma": libm.fmaf if kind == "f32" else libm.fma,
            "neg": lambda a: -a,
            "abs": abs,
            "copysign": lambda sign, value: math.copysign(value, sign),
            "min": lambda a, b: extreme(min, a, b),
            "max": lambda a, b: extreme(max, a, b),
            "mov": lambda a: a,
            "selp": lambda a, b, p: a if p else b,
        }[op]
    if kind == "pred":
        return {
            "and": lambda a, b: a and b, "or": lambda a, b: a or b, "xor": lambda a, b: a != b,
            "not": lambda a: not a, "mov": lambda a: a,
        }[op]  # fmt: skip
    bits = int(kind[1:])
    wide = kind[0] + str(2 * bits)
    return {
        "add": lambda a, b: wrap(a + b, kind),
        "sub": lambda a, b: wrap(a - b, kind),
        "mul": (lambda a, b: a * b)
        if "wide" in rest
        else (lambda a, b: (a * b) >> bits)
        if "hi" in rest
        else lambda a, b: wrap(a * b, kind),
        "div": lambda a, b: wrap(-1 if b == 0 else _quotient(a, b), kind),
        "mad": (lambda a, b, c: wrap(a * b + c, wide))
        if "wide" in rest
        else (lambda a, b, c: wrap(a * b + c, kind)),
        "min": min,
        "max": max,
        "rem": lambda a, b: wrap(-1, kind) if b == 0 else a - b * _quotient(a, b),
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "not": lambda a: wrap(~a, kind),
        "neg": lambda a: wrap(-a, kind),
        "shl": lambda a, by: wrap(a << by, kind) if by < bits else 0,
        "shr": lambda a, by: a >> min(by, bits),
        "mov": lambda a: a,
        "selp": lambda a, b, p: a if p else b,
    }[op]


def extracted(a, start, length):
    """bfe.u32: `length` bits from `start` on, both taken by their lowest byte."""
    return (a >> (start & 0xFF)) & (2 ** (length & 0xFF) - 1)


def permuted(a, b, selector):
    """prmt.b32: each nibble of the selector picks a byte of both, or repeats its sign."""
    picked = []
    for nibble in (selector >> 4 * i & 15 for i in range(4)):
        byte = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")][nibble % 8]
        picked.append(byte if nibble < 8 else 255 * (byte // 128))
    return int.from_bytes(bytes(picked), "little")


def _quotient(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def compare_model(relation, kind):
    if kind.endswith("x2"):
        nan = compare_model(relation, kind.removesuffix("x2"))
        return lambda a, b: (nan(a & 0xFFFF, b & 0xFFFF), nan(a >> 16, b >> 16))
    if relation == "nan":
        value = (lambda v: from_16(v, kind)) if kind in ("f16", "bf16") else (lambda v: v)
        return lambda a, b: math.isnan(value(a)) or math.isnan(value(b))
    if relation == "num":
        return lambda a, b: not (math.isnan(a) or math.isnan(b))
    if kind in ("f16", "bf16"):
        wide = compare_model(relation, "f32")
        return lambda a, b: wide(from_16(a, kind), from_16(b, kind))
    if kind not in ("f32", "f64"):
        return COMPARE[relation]
    unordered = relation not in COMPARE
    test = COMPARE[relation.removesuffix("u")]
    return lambda a, b: unordered if math.isnan(a) or math.isnan(b) else test(a, b)


def convert_model(rest):
    *how, to, source = rest
    if to.endswith("x2"):
        half = to.removesuffix("x2")
        return lambda a, b: to_16(a, half) << 16 | to_16(b, half)
    if to in ("f16", "bf16"):
        return lambda a: to_16(a, to)
    if source in ("f16", "bf16"):
        return lambda a: from_16(a, source)
    if to in ("f32", "f64"):
        exact = to == "f64" or source == "f64"
        return (lambda a: rounded(to)(a)) if exact else (lambda a: float(np.float32(a)))
    if "rzi" in how:
        return lambda a: truncated(a, to)
    return lambda a: wrap(a, to)


def values_of(kind):
    if kind == "pred":
        return [False, True]
    if kind in ("f32", "pair"):
        return [f32(v) for v in F32]
    if kind == "f64":
        return F64
    if kind in ("f16", "bf16"):
        return [0, 0x8000, 1, 0x3C00, 0x3F80, 0x7BFF, 0x7C00, 0x7F80, 0x7FC0, 0xFFFF, 0x0400]
    return integers(kind)


def compute(opcode, columns):
    """What machine.cpp computes, an array for each destination; of pairs, both halves alike."""
    columns = [
        np.repeat(np.array(values, np.float32), 2)
        if kind == "pair"
        else np.array(values, DTYPES[kind])
        for values, kind in zip(columns, opcode.sources, strict=True)
    ]
    count = len(columns[0]) // (2 if opcode.sources[0] == "pair" else 1)
    results = [
        np.zeros((count, 2), np.float32) if kind == "pair" else np.zeros(count, DTYPES[kind])
        for kind in opcode.to
    ]
    to, sources = (
        (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        for arrays in (results, columns)
    )
    native.library().emulator_compute(opcode.number, to, sources, count)
    return [part for result in results for part in (result.T if result.ndim == 2 else [result])]


@pytest.mark.parametrize("name", sorted(table()))
def test_an_opcode_does_what_the_scalar_model_says(name):
    opcode = table()[name]
    rows = list(itertools.product(*map(values_of, opcode.sources)))
    if len(rows) > 3000:
        rows = rows[:: len(rows) // 3000]
    results = [r.tolist() for r in compute(opcode, list(zip(*rows, strict=True)))]
    meaning = model(name)
    for i, row in enumerate(rows):
        expected = meaning(*row)
        expected = expected if isinstance(expected, tuple) else (expected,) * len(results)
        for got, wanted in zip((r[i] for r in results), expected, strict=True):
            same = got == wanted or (got != got and wanted != wanted)
            assert same, f"{name}{row}: {got}, not {wanted}"
            if isinstance(wanted, float) and wanted == 0:
                assert math.copysign(1, got) == math.copysign(1, wanted), f"{name}{row}"


def test_fma_rounds_once_on_random_bits():
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, (3, 20000), dtype=np.uint64).astype(np.uint32)
    a, b, c = bits.view(np.float32)
    with np.errstate(all="ignore"):
        c[::2] = -(a[::2] * b[::2])  # where the product and the addend nearly cancel
        result = fma_f32(a, b, c)
    for row in zip(result, a, b, c, strict=True):
        got, *operands = map(float, row)
        wanted = libm.fmaf(*operands)
        assert got == wanted or (got != got and wanted != wanted), operands
