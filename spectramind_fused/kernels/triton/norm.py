"""The norm of all gradients in Triton: `norm` over pieces, and, where these are many, `reduce`."""

from __future__ import annotations

import triton
import triton.language as tl

from spectramind_fused.kernels.triton.storage import load_row_of

GRAD = tl.constexpr(1)  # row of the pointer table (csrc/tables.h)


@triton.jit
def load_row(base, stride, N: tl.constexpr, mask=None):
    """A tuple of N values, `stride` apart."""
    values = ()
    for j in tl.static_range(N):
        values = values + (tl.load(base + j * stride, mask=mask),)
    return values


@triton.jit
def sum_of_rows(rows, first, last, BLOCK: tl.constexpr):
    """The sums of both columns over rows [first, last), always in the same order."""
    lane = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float64)
    nonfinite = tl.zeros([BLOCK], tl.float64)
    for at in range(first, last, BLOCK):
        row = at + lane
        squares += tl.load(rows + 2 * row, mask=row < last, other=0.0)
        nonfinite += tl.load(rows + 2 * row + 1, mask=row < last, other=0.0)
    return tl.sum(squares, 0), tl.sum(nonfinite, 0)


@triton.jit(do_not_specialize=["rows"])
def reduce(partials, rows, sums, ROWS_PER_SUM: tl.constexpr):
    """One program per ROWS_PER_SUM partial sums, which are 16 bytes for 8,192 parameters."""
    first = tl.program_id(0) * ROWS_PER_SUM
    last = tl.minimum(first + ROWS_PER_SUM, rows)
    squares, nonfinite = sum_of_rows(partials, first, last, ROWS_PER_SUM)
    tl.store(sums + 2 * tl.program_id(0), squares)
    tl.store(sums + 2 * tl.program_id(0) + 1, nonfinite)


@triton.jit
def add_pair(high, low, other_high, other_low):
    """The sum of two pairs: what rounding loses of the high parts goes into the low one."""
    total = high + other_high
    taken = total - high
    lost = (high - (total - taken)) + (other_high - taken)
    return total, low + other_low + lost


@triton.jit
def sums_of_squares_in_pairs(blocks):
    """Of each row of some blocks, in pairs of float32: for GPUs that compute little in float64.

    The relative error is near 2^-44. A row is scaled by a power of two that brings its largest
    value near 1, so no square overflows.
    """
    largest = tl.abs(blocks[0])
    for j in tl.static_range(1, len(blocks)):
        largest = tl.maximum(largest, tl.abs(blocks[j]))
    exponent = tl.max(largest, 1).to(tl.int32, bitcast=True) >> 23
    field = tl.maximum(1, tl.minimum(254, 253 - exponent))
    scale = (field << 23).to(tl.float32, bitcast=True)[:, None]
    high = tl.zeros_like(largest)
    low = tl.zeros_like(largest)
    for j in tl.static_range(len(blocks)):
        value = blocks[j] * scale
        square = value * value
        high, low = add_pair(high, low, square, tl.fma(value, value, -square))
    high, low = tl.reduce((high, low), 1, add_pair)
    low = tl.where(tl.abs(high) < float("inf"), low, 0.0)  # it is NaN then
    unscale = ((1023 + 2 * (127 - field)).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    return (high.to(tl.float64) + low.to(tl.float64)) * unscale


@triton.jit
def add_blocks(
    squares, nonfinite, address, at, last, PAIRS: tl.constexpr, DTYPE: tl.constexpr,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """What some blocks of 8 * ROWS elements add to the sums; all are loaded before one is used."""
    lane = tl.arange(0, ROWS)[:, None] * 8 + tl.arange(0, 8)[None, :]
    blocks = ()
    for j in tl.static_range(BLOCKS):
        block = load_row_of(address, DTYPE, at + 8 * ROWS * j + lane, last, VECTOR)
        blocks = blocks + (block.to(tl.float32),)
    if PAIRS:
        squares += sums_of_squares_in_pairs(blocks)[:, None]
    for j in tl.static_range(BLOCKS):
        if not PAIRS:
            wide = blocks[j].to(tl.float64)
            squares = tl.fma(wide, wide, squares)
        nonfinite += tl.where(tl.abs(blocks[j]) < float("inf"), 0.0, 1.0)
    return squares, nonfinite


@triton.jit(do_not_specialize=["tensors"])
def norm(
    pointers,
    sizes,
    pieces,
    partials,
    partial_rows,
    tensors,
    DTYPE: tl.constexpr,
    PAIRS: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One program per piece: its gradient's sum of squares, and whether all of it is finite.

    In float64, where squares of float32 neither overflow nor round, or in pairs of float32. 4 bytes
    per fp32 parameter.
    """
    piece = pieces + 2 * tl.program_id(0)
    tensor = tl.load(piece)
    first = tl.multiple_of(tl.load(piece + 1), PIECE)
    size = tl.load(sizes + tensor)
    address = tl.load(pointers + GRAD * tensors.to(tl.int64) + tensor)
    last = tl.where(address == 0, first, tl.minimum(first + PIECE, size))
    TAKEN: tl.constexpr = 8 * ROWS * BLOCKS
    by_vectors = tl.where(address % 16 == 0, (last - first) // TAKEN * TAKEN, 0)

    squares = tl.zeros([ROWS, 1 if PAIRS else 8], tl.float64)
    nonfinite = tl.zeros([ROWS, 8], tl.float32)
    for at in range(first, first + by_vectors, TAKEN):
        squares, nonfinite = add_blocks(
            squares, nonfinite, address, at, last, PAIRS, DTYPE, ROWS, BLOCKS, True
        )
    for at in range(first + by_vectors, last, TAKEN):
        squares, nonfinite = add_blocks(
            squares, nonfinite, address, at, last, PAIRS, DTYPE, ROWS, BLOCKS, False
        )
    row = partials + 2 * (tl.load(partial_rows + tensor) + first // PIECE)
    tl.store(row, tl.sum(tl.sum(squares, 1), 0))
    tl.store(row + 1, tl.sum(tl.sum(nonfinite, 1), 0).to(tl.float64))
