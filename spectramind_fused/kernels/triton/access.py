"""How values get into float32 registers and back: the storage axis in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_row(base, stride, N: tl.constexpr, mask=None):
    """A tuple of N values, `stride` apart."""
    values = ()
    for j in tl.static_range(N):
        values = values + (tl.load(base + j * stride, mask=mask),)
    return values


@triton.jit
def load(address, dtype: tl.constexpr, index, size, VECTOR: tl.constexpr):
    """A block of one slot, widened to float32.

    VECTOR promises a full block at an address of 16-byte alignment.
    """
    base = address.to(tl.pointer_type(dtype))
    if VECTOR:
        return tl.load(tl.multiple_of(base, 16) + index).to(tl.float32)
    else:
        return tl.load(base + index, mask=index < size, other=0.0).to(tl.float32)


@triton.jit
def store(address, dtype: tl.constexpr, index, size, VECTOR: tl.constexpr, value):
    """Rounds a block to the dtype of its slot, to nearest even, and writes it."""
    base = address.to(tl.pointer_type(dtype))
    if VECTOR:
        tl.store(tl.multiple_of(base, 16) + index, value.to(dtype))
    else:
        tl.store(base + index, value.to(dtype), mask=index < size)
