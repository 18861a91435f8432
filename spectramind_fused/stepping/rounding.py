"""Values in fewer bits than they are computed with, and back, in plain torch.

What `csrc/storages.h` does on registers, on whole tensors: the same bits, from the same random
bits. Everything here is one-dimensional, in the order in which elements lie in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from spectramind_fused.multi_tensor.storages import (
    GROUP,
    MASTER,
    PIECE,
    SIGNED8,
    SPLIT,
    STOCHASTIC,
    AnyStorage,
)

_MASK = 0xFFFFFFFF
_INFINITY = 0x7F800000
_MAGNITUDE = 0x7FFFFFFF
_TO_NEAREST = 0x8000  # in the place of 16 random bits: up from a half on


class Place(NamedTuple):
    """Where the elements of a tensor are in the parameter, of which it may be a part.

    Element i is element `offset + i // run * stride + i % run` of the whole.

    Attributes:
        parameter: which one of the optimizer's it is.
        offset, run, stride: as above; `run` is the size of a whole tensor.
    """

    parameter: int
    offset: int
    run: int
    stride: int

    def elements(self, count: int, device: torch.device) -> Tensor:
        """The index of each element in the whole: int64 [count]."""
        at = torch.arange(count, device=device)
        run = max(1, self.run)
        return self.offset + at // run * self.stride + at % run


class Draw(NamedTuple):
    """Whose random bits.

    Attributes:
        seed: of the optimizer.
        step: how many the parameter has taken, this one included.
        place: where the elements are.
    """

    seed: int
    step: int
    place: Place

    def bits(self, stream: int, count: int, device: torch.device) -> Tensor:
        """16 random bits for each element of a slot: int64 [count]."""
        elements = self.place.elements(count, device)
        call = elements // 8 & _MASK
        words = philox(self.seed, call, self.step, self.place.parameter, stream)
        at = elements % 8
        word = torch.stack(words).gather(0, (at // 2)[None])[0]
        return word >> at % 2 * 16 & 0xFFFF


def philox(seed: int, call: Tensor, *counter: int) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., Parallel Random Numbers, 2011).

    Args:
        seed: the key, 64 bits.
        call: the first word of the counter, int64.
        *counter: the other three.

    Returns:
        Four words, each an int64 that holds 32 bits.
    """
    words = [call, *(torch.full_like(call, word & _MASK) for word in counter)]
    key = [seed & _MASK, seed >> 32 & _MASK]
    for _ in range(10):
        high0, low0 = _product(0xD2511F53, words[0])
        high1, low1 = _product(0xCD9E8D57, words[2])
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
        key = [key[0] + 0x9E3779B9 & _MASK, key[1] + 0xBB67AE85 & _MASK]
    return words


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves of a product of 32-bit numbers, in int64, which holds 63 bits of it."""
    low = (a & 0xFFFF) * b
    high = (a >> 16) * b + (low >> 16)
    return high >> 16, (high << 16 | low & 0xFFFF) & _MASK


def narrow(storage: AnyStorage, values: Tensor, random: Tensor | None) -> list[Tensor]:
    """Rounds float32 values to what a storage holds.

    Args:
        storage: any.
        values: float32, 1-d.
        random: 16 random bits of each; None to round to nearest.

    Returns:
        What goes into its own row, then into those beside it.
    """
    if isinstance(storage, torch.dtype):
        return [values.to(storage)]
    if storage == SPLIT:
        whole = torch.where(values.isnan(), 0x7FC00000, _bits(values)) & _MASK
        upper = (whole + 0x8000 & _MASK) >> 16
        remainder = (whole & 0xFFFF).to(torch.int16)
        return [_bfloat16(upper), remainder, _checksums(upper)]
    if storage in MASTER.values():
        return [values.to(storage.dtype), values]
    if random is None and storage in STOCHASTIC.values():
        return [values.to(storage.dtype)]
    if random is None:
        random = torch.full_like(values, _TO_NEAREST, dtype=torch.int64)
    if storage in STOCHASTIC.values():
        rounded = _to_bfloat16 if storage.dtype == torch.bfloat16 else _to_float16
        return [rounded(values, random)]
    scaled = values if storage == SIGNED8 else _root(values)
    scales = _scales(scaled)
    by = _spread(scales, len(values))
    code = _to_signed8 if storage == SIGNED8 else _to_unsigned8
    return [code(scaled, by, random), scales]


def widen(storage: AnyStorage, own: Tensor, beside: list[Tensor]) -> Tensor:
    """The float32 values that a storage holds; of float64 itself.

    Args:
        storage: any.
        own: its own row, 1-d.
        beside: the rows beside it, 1-d.
    """
    if isinstance(storage, torch.dtype):
        return own if storage == torch.float64 or storage.is_complex else own.float()
    if storage in STOCHASTIC.values():
        return own.float()
    if storage == SPLIT:
        upper = own.view(torch.int16).to(torch.int64) & 0xFFFF
        joined = _float((upper << 16) + beside[0].to(torch.int64) & _MASK)
        holds = _checksums(upper) == beside[1]
        return torch.where(holds.repeat_interleave(PIECE)[: len(own)], joined, own.float())
    if storage in MASTER.values():
        rounded = beside[0].to(storage.dtype).view(torch.int16)
        return torch.where(rounded == own.view(torch.int16), beside[0], own.float())
    by, steps = _spread(beside[0], len(own)), own.float()
    if storage == SIGNED8:
        values = by * (steps / (254.0 - steps.abs()))
        return torch.where(own == -128, torch.nan, values)
    root = by * (steps * torch.tensor(1 / 254, dtype=torch.float32))
    return torch.where(own == 255, torch.inf, root * root)


def _bits(values: Tensor) -> Tensor:
    """The 32 bits of each float32, in an int64."""
    return values.view(torch.int32).to(torch.int64) & _MASK


def _float(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def _bfloat16(bits: Tensor) -> Tensor:
    return bits.to(torch.int16).view(torch.bfloat16)


def _to_bfloat16(values: Tensor, random: Tensor) -> Tensor:
    raw = _bits(values)
    finite = (raw & _MAGNITUDE) < _INFINITY
    rounded = torch.where(finite, raw + random & _MASK, raw) >> 16
    return _bfloat16(torch.where(values.isnan(), 0x7FC0, rounded))


def _to_float16(values: Tensor, random: Tensor) -> Tensor:
    raw = _bits(values)
    magnitude = raw & _MAGNITUDE
    small = magnitude < 0x38800000  # 2^-14: below, a float16 is a multiple of 2^-24
    units = torch.where(small, values.abs(), 0.0) * 2.0**24
    subnormal = (units + random.float() * 2.0**-16).to(torch.int64)
    normal = magnitude - 0x38000000 + (random >> 3) >> 13
    half = torch.where(small, subnormal, normal)
    half = torch.where(magnitude >= 0x47800000, 0x7C00, half)
    half = torch.where(values.isnan(), 0x7E00, half | raw >> 16 & 0x8000)
    return half.to(torch.int16).view(torch.float16)


def _checksums(upper: Tensor) -> Tensor:
    """Of each piece: int32."""
    at = torch.arange(len(upper), device=upper.device)
    mixed = (upper * 0x9E3779B1 ^ at * 0x85EBCA6B) & _MASK
    checks = (mixed ^ mixed >> 15) * 0xC2B2AE35 & _MASK
    padded = pad(checks, (0, -len(upper) % PIECE))
    return (padded.view(-1, PIECE).sum(1) & _MASK).to(torch.int32)


def _root(values: Tensor) -> Tensor:
    """By IEEE: torch's own of a CPU tensor may be a unit in the last place off."""
    return values.double().sqrt().float()


def _scales(scaled: Tensor) -> Tensor:
    """Of each group the largest finite magnitude, as a bfloat16 that is not below it."""
    magnitude = _bits(scaled) & _MAGNITUDE
    magnitude = torch.where(magnitude < _INFINITY, magnitude, 0)
    largest = pad(magnitude, (0, -len(scaled) % GROUP)).view(-1, GROUP).amax(1)
    return _bfloat16((largest + 0xFFFF >> 16).clamp(max=0x7F7F))


def _spread(scales: Tensor, count: int) -> Tensor:
    return scales.float().repeat_interleave(GROUP)[:count]


def _to_signed8(values: Tensor, scale: Tensor, random: Tensor) -> Tensor:
    half = 0.5 * torch.where(values.isfinite(), values.abs(), 0.0)
    total = half + 0.5 * scale
    part = half / torch.where(total > 0, total, 1.0)
    steps = _steps(part, random).clamp(max=127)
    codes = torch.where(values.signbit(), -steps, steps)
    return torch.where(values.isfinite(), codes, -128).to(torch.int8)


def _to_unsigned8(root: Tensor, scale: Tensor, random: Tensor) -> Tensor:
    finite = torch.where(root.isfinite(), root.abs(), 0.0)
    steps = _steps(finite / torch.where(scale > 0, scale, 1.0), random).clamp(max=254)
    codes = torch.where((finite > 0) & (steps < 1), 1, steps)
    return torch.where(root.isfinite(), codes, 255).to(torch.uint8)


def _steps(part: Tensor, random: Tensor) -> Tensor:
    """How many of 254 steps, rounded by random bits: computed exactly, then rounded once."""
    exact = part.double() * 254.0 + random.double() * 2.0**-16
    return exact.float().to(torch.int64)
