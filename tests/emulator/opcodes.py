"""The instructions this emulator knows: opcode as written, operand types, meaning.

Strict: what is not in the table is an error when it is reached. Only opcodes that Triton or nvcc
was seen to emit for these kernels, or that a test covers, belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from tests.emulator import arithmetic as do

TYPES: dict[str, type] = {
    **{f"s{n}": getattr(np, f"int{n}") for n in (16, 32, 64)},
    **{f"u{n}": getattr(np, f"uint{n}") for n in (16, 32, 64)},
    **{f"b{n}": getattr(np, f"uint{n}") for n in (16, 32, 64)},
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.uint16,  # 16-bit floats stay patterns until they are widened
    "bf16": np.uint16,
    "pred": np.bool_,
}
PAIR = "pair"  # a 64-bit register that holds two floats


@dataclass(frozen=True)
class Opcode:
    """Types of destination and sources, and the function from sources to destination.

    A destination of several types is a tuple; its function returns as many arrays.
    """

    to: tuple[str, ...]
    sources: tuple[str, ...]
    function: Callable[..., object]


TABLE: dict[str, Opcode] = {}


def define(name: str, to: str, sources: str, function: Callable[..., object]) -> None:
    TABLE[name] = Opcode(tuple(to.split()), tuple(sources.split()), function)


def _integers() -> None:
    for t in ("s16", "u16", "s32", "u32", "s64", "u64"):
        define(f"add.{t}", t, f"{t} {t}", np.add)
        define(f"sub.{t}", t, f"{t} {t}", np.subtract)
        define(f"mul.lo.{t}", t, f"{t} {t}", np.multiply)
        define(f"mad.lo.{t}", t, f"{t} {t} {t}", lambda a, b, c: a * b + c)
        define(f"min.{t}", t, f"{t} {t}", np.minimum)
        define(f"max.{t}", t, f"{t} {t}", np.maximum)
        define(f"rem.{t}", t, f"{t} {t}", do.remainder)
        define(f"shr.{t}", t, f"{t} u32", do.shift_right)
    for t in ("s16", "s32", "s64"):
        define(f"neg.{t}", t, t, np.negative)
    for narrow, wide in (("s32", "s64"), ("u32", "u64")):
        product = partial(do.wide_product, TYPES[wide])
        define(f"mul.wide.{narrow}", wide, f"{narrow} {narrow}", product)
        define(f"mad.wide.{narrow}", wide, f"{narrow} {narrow} {wide}", product)
    for t in ("b16", "b32", "b64", "pred"):
        define(f"and.{t}", t, f"{t} {t}", np.bitwise_and)
        define(f"or.{t}", t, f"{t} {t}", np.bitwise_or)
        define(f"xor.{t}", t, f"{t} {t}", np.bitwise_xor)
        define(f"not.{t}", t, t, np.invert)
    for t in ("b16", "b32", "b64"):
        define(f"shl.{t}", t, f"{t} u32", do.shift_left)
        define(f"mov.{t}", t, t, np.copy)
    for t in ("u16", "u32", "u64", "s32", "f32", "f64", "pred"):
        define(f"mov.{t}", t, t, np.copy)
    define("cvta.to.global.u64", "u64", "u64", np.copy)  # global addresses are generic ones


def _floats() -> None:
    for t, fma in (("f32", do.fma_f32), ("f64", do.fma_f64)):
        for name, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
            define(f"{name}.rn.{t}", t, f"{t} {t}", function)
            # Without .rn ptxas may contract it with a neighbour: here it never does.
            define(f"{name}.{t}", t, f"{t} {t}", function)
        define(f"div.rn.{t}", t, f"{t} {t}", np.divide)
        define(f"rcp.rn.{t}", t, t, np.reciprocal)
        define(f"sqrt.rn.{t}", t, t, np.sqrt)
        define(f"fma.rn.{t}", t, f"{t} {t} {t}", fma)
        define(f"neg.{t}", t, t, np.negative)
        define(f"abs.{t}", t, t, np.abs)
        define(f"min.{t}", t, f"{t} {t}", do.minimum)
        define(f"max.{t}", t, f"{t} {t}", do.maximum)
    for t in ("f16", "bf16"):  # the sign is a bit, also of a NaN
        define(f"abs.{t}", t, t, lambda a: a & np.uint16(0x7FFF))
        define(f"abs.{t}x2", "u32", "u32", lambda a: a & np.uint32(0x7FFF7FFF))
    # sm_100: two floats in one register, and sums of mixed width
    for name, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
        define(f"{name}.rn.f32x2", PAIR, f"{PAIR} {PAIR}", function)
        define(f"{name}.f32x2", PAIR, f"{PAIR} {PAIR}", function)
    define("fma.rn.f32x2", PAIR, f"{PAIR} {PAIR} {PAIR}", do.fma_f32)
    for rounding in (".rn", ""):
        define(f"add{rounding}.f32.bf16", "f32", "bf16 f32", lambda a, b: do.widen_bf16(a) + b)
        define(f"add{rounding}.f32.f16", "f32", "f16 f32", lambda a, b: do.widen_f16(a) + b)


def _comparisons() -> None:
    ordered = {"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
    ordered["ge"] = np.greater_equal
    for t in ("s16", "u16", "s32", "u32", "s64", "u64", "b16", "b32", "b64"):
        names = ordered if t[0] != "b" else {"eq": np.equal}
        for name, function in {**names, "ne": np.not_equal}.items():
            define(f"setp.{name}.{t}", "pred", f"{t} {t}", function)
    for t in ("f32", "f64"):
        for name, function in ordered.items():
            define(f"setp.{name}.{t}", "pred", f"{t} {t}", function)
            define(
                f"setp.{name}u.{t}", "pred", f"{t} {t}",
                lambda a, b, f=function: f(a, b) | np.isnan(a) | np.isnan(b),
            )  # fmt: skip
        define(
            f"setp.ne.{t}", "pred", f"{t} {t}",
            lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b),
        )  # fmt: skip
        define(f"setp.neu.{t}", "pred", f"{t} {t}", np.not_equal)
        define(f"setp.nan.{t}", "pred", f"{t} {t}", lambda a, b: np.isnan(a) | np.isnan(b))
    define("setp.nan.f16", "pred", "f16 f16", _nan_f16)
    define("setp.nan.bf16", "pred", "bf16 bf16", _nan_bf16)
    for t, nan, widen in (
        ("f16", _nan_f16, do.widen_f16),
        ("bf16", _nan_bf16, do.widen_bf16),
    ):
        define(
            f"setp.ne.{t}", "pred", f"{t} {t}",
            lambda a, b, nan=nan, widen=widen: (widen(a) != widen(b)) & ~nan(a, b),
        )  # fmt: skip
        define(
            f"setp.nan.{t}x2", "pred pred", "u32 u32",
            lambda a, b, nan=nan: (nan(_low(a), _low(b)), nan(_high(a), _high(b))),
        )  # fmt: skip
    for t in ("b16", "b32", "b64", "f32", "f64", "u16", "s32", "u32", "s64", "u64"):
        define(f"selp.{t}", t, f"{t} {t} pred", lambda a, b, p: np.where(p, a, b))


def _conversions() -> None:
    for to, source in (
        ("u16", "u32"), ("u32", "u64"), ("u64", "u32"), ("u32", "u16"), ("s64", "s32"),
        ("s32", "s64"), ("u64", "u16"),
    ):  # fmt: skip
        define(f"cvt.{to}.{source}", to, source, lambda a, t=TYPES[to]: a.astype(t))
    for source in ("s16", "s32", "u32", "s64", "u64"):
        for to in ("f32", "f64"):
            name = f"cvt.rn.{to}.{source}"
            define(name, to, source, lambda a, t=TYPES[to]: a.astype(t))
    for to in ("s32", "u32", "s64", "u64"):
        for source in ("f32", "f64"):
            define(f"cvt.rzi.{to}.{source}", to, source, lambda a, t=TYPES[to]: do.to_integer(a, t))
    define("cvt.rn.f32.f64", "f32", "f64", lambda a: a.astype(np.float32))
    define("cvt.f64.f32", "f64", "f32", lambda a: a.astype(np.float64))
    define("cvt.f32.bf16", "f32", "bf16", do.widen_bf16)
    define("cvt.f32.f16", "f32", "f16", do.widen_f16)
    define("cvt.f64.bf16", "f64", "bf16", lambda a: do.widen_bf16(a).astype(np.float64))
    define("cvt.f64.f16", "f64", "f16", lambda a: do.widen_f16(a).astype(np.float64))
    define("cvt.rn.bf16.f32", "bf16", "f32", do.narrow_bf16)
    define("cvt.rn.f16.f32", "f16", "f32", do.narrow_f16)
    for t, narrow in (("bf16", do.narrow_bf16), ("f16", do.narrow_f16)):
        define(  # the first source goes into the upper half
            f"cvt.rn.{t}x2.f32", "u32", "f32 f32",
            lambda a, b, narrow=narrow: (narrow(a).astype(np.uint32) << 16) | narrow(b),
        )  # fmt: skip


def _nan_f16(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.isnan(a.view(np.float16)) | np.isnan(b.view(np.float16))


def _nan_bf16(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.isnan(do.widen_bf16(a)) | np.isnan(do.widen_bf16(b))


def _low(a: np.ndarray) -> np.ndarray:
    return (a & 0xFFFF).astype(np.uint16)


def _high(a: np.ndarray) -> np.ndarray:
    return (a >> 16).astype(np.uint16)


_integers()
_floats()
_comparisons()
_conversions()
