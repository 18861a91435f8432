"""Tensors whose mean squares are factored, and steps that are measured first, in Triton.

`squares` over tiles; `move` over pieces of vectors and `divide` over matrices make the factors;
`measure` over chunks and `scale` over tensors find how far a step goes. csrc/factored.h says how it
all lies.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectramind_fused.kernels.triton.norm import load_row
from spectramind_fused.kernels.triton.rules import lerp
from spectramind_fused.kernels.triton.storage import load, load_factored
from spectramind_fused.kernels.triton.walk import (
    COMMON_HYPERPARAMETERS,
    COMMON_SCALARS,
    FIRST_STATE,
    GRAD,
    PARAM,
    SOURCE_COLUMNS,
    STEP,
    checksum_of,
    layout_of,
    load_row_or_tensors,
)
from spectramind_fused.multi_tensor import factoring as host

# Of the tables (csrc/tables.h).
LAYOUT_COLUMNS = tl.constexpr(host.LAYOUT_COLUMNS)
TILE_COLUMNS = tl.constexpr(host.TILE_COLUMNS)
PIECE_COLUMNS = tl.constexpr(host.PIECE_COLUMNS)
BATCH_COLUMNS = tl.constexpr(host.BATCH_COLUMNS)
MEASURE_COLUMNS = tl.constexpr(host.MEASURE_COLUMNS)
OUTER_VECTOR = tl.constexpr(host.OUTER_VECTOR)
INNER_VECTOR = tl.constexpr(host.INNER_VECTOR)
SKIP = tl.constexpr(1)
WEIGHT = tl.constexpr(1)  # of the rule's scalars
EPS1 = tl.constexpr(2)
NEG_STEP = tl.constexpr(4)
STRAIGHT = tl.constexpr(
    host.STRAIGHT
)  # rows of so many elements are summed together, shorter ones each


@triton.jit
def doubles(address):
    return address.to(tl.pointer_type(tl.float64))


@triton.jit
def is_bad(value):
    return tl.where(tl.abs(value) < float("inf"), 0, 1)


@triton.jit
def square_matrix(
    matrix, outer_sums, inner_sums, outer, last_outer, inner, last_inner, inners,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sums of a part of one matrix whose rows follow each other: one read, for all columns.

    The sums of rows of more than COLUMNS elements are taken from the cache.

    Returns:
        The sum of squares, and how many are not finite.
    """
    squares = tl.zeros([COLUMNS], tl.float64)
    bad = tl.zeros([ROWS, COLUMNS], tl.int32)
    for first in range(inner, last_inner, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        sums = tl.zeros([ROWS, COLUMNS], tl.float64)
        for top in range(outer, last_outer, ROWS):
            row = top + tl.arange(0, ROWS)
            there = (row < last_outer)[:, None] & (column < last_inner)[None, :]
            at = row[:, None] * inners + column[None, :]
            value = tl.load(matrix + at, mask=there, other=0.0).to(tl.float32)
            square = value.to(tl.float64) * value.to(tl.float64)
            sums += square
            bad += is_bad(value)
            if last_inner - inner <= COLUMNS:
                tl.store(outer_sums + row, tl.sum(square, 1), mask=row < last_outer)
        of_columns = tl.sum(sums, 0)
        tl.store(inner_sums + column, of_columns, mask=column < last_inner)
        squares += of_columns
    if last_inner - inner > COLUMNS:
        for line in range(outer, last_outer):
            of_row = tl.zeros([COLUMNS], tl.float64)
            for first in range(inner, last_inner, COLUMNS):
                column = first + tl.arange(0, COLUMNS)
                there = column < last_inner
                value = tl.load(matrix + line * inners + column, mask=there, other=0.0)
                wide = value.to(tl.float32).to(tl.float64)
                of_row = tl.fma(wide, wide, of_row)
            tl.store(outer_sums + line, tl.sum(of_row, 0))
    return tl.sum(squares, 0), tl.sum(tl.sum(bad, 1), 0)


@triton.jit
def add_along(gradient, at, stride, count, mask):
    """The squares of `count` elements, `stride` apart, from each place on."""
    squares = tl.zeros(at.shape, tl.float64)
    bad = tl.zeros(at.shape, tl.int32)
    for i in range(0, count):
        value = tl.load(gradient + at + i * stride, mask=mask, other=0.0).to(tl.float32)
        wide = value.to(tl.float64)
        squares = tl.fma(wide, wide, squares)
        bad += is_bad(value)
    return squares, bad


@triton.jit
def square_matrices(
    gradient, outer_sums, inner_sums, first, last, outer, last_outer, outers, betweens, inners,
    withins, within, last_within, LANES: tl.constexpr,
):  # fmt: skip
    """The sums of small matrices, or of some rows of one: each by one lane.

    They are read twice, once from the cache.

    Returns:
        As `square_matrix`.
    """
    total = tl.zeros([LANES], tl.float64)
    bad = tl.zeros([LANES], tl.int32)
    wide = last_within - within
    lane = tl.arange(0, LANES)
    rows = (last_outer - outer) * betweens
    count = (last - first) * rows * wide
    for at in range(0, count, LANES):
        there = at + lane < count
        index = (at + lane) // wide
        line = ((first + index // rows) * outers + outer) * betweens + index % rows
        place = within + (at + lane) % wide
        squares, found = add_along(
            gradient, line * inners * withins + place, withins, inners, there
        )
        tl.store(outer_sums + line * withins + place, squares, mask=there)
        total += squares
        bad += found
    count = (last - first) * betweens * inners * wide
    of_line = betweens * inners
    for at in range(0, count, LANES):
        there = at + lane < count
        index = (at + lane) // wide
        place = within + (at + lane) % wide
        matrix = first + index // of_line
        across = index % of_line
        begin = ((matrix * outers + outer) * of_line + across) * withins + place
        squares, found = add_along(gradient, begin, of_line * withins, last_outer - outer, there)
        tl.store(inner_sums + (matrix * of_line + across) * withins + place, squares, mask=there)
    return tl.sum(total, 0), tl.sum(bad, 0)


@triton.jit(do_not_specialize=["tensors"])
def squares(
    pointers,
    sizes,
    tiles,
    layouts,
    partials,
    partial_rows,
    tensors,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
):
    """One program per tile: the sums of squares of rows and columns, and the norm's partial one.

    4 bytes per fp32 parameter, and 8 for each sum.
    """
    (
        tensor, number, first, last, outer, last_outer, inner, last_inner, within, last_within,
        outer_part, inner_part,
    ) = load_row(tiles + TILE_COLUMNS * tl.program_id(0), 1, TILE_COLUMNS)  # fmt: skip
    layout = load_row(layouts + LAYOUT_COLUMNS * tensor, 1, LAYOUT_COLUMNS)
    outers, betweens, inners, withins = layout[:4]
    size = tl.load(sizes + tensor)
    outer_sums = doubles(layout[OUTER_VECTOR + 2]) + outer_part * (size // inners)
    inner_sums = doubles(layout[INNER_VECTOR + 2]) + inner_part * (size // outers)
    address = tl.load(pointers + GRAD * tensors.to(tl.int64) + tensor)
    gradient = address.to(tl.pointer_type(DTYPE))
    last = tl.where(address == 0, first, last)
    total = 0.0
    total = total.to(tl.float64)
    bad = 0
    if (betweens * withins == 1) & (inners >= STRAIGHT):
        for matrix in range(first, last):
            found, nonfinite = square_matrix(
                gradient + matrix * outers * inners, outer_sums + matrix * outers,
                inner_sums + matrix * inners, outer, last_outer, inner, last_inner, inners,
                ROWS, COLUMNS,
            )  # fmt: skip
            total += found
            bad += nonfinite
    else:
        found, nonfinite = square_matrices(
            gradient, outer_sums, inner_sums, first, last, outer, last_outer, outers, betweens,
            inners, withins, within, last_within, LANES,
        )  # fmt: skip
        total += found
        bad += nonfinite
    row = partials + 2 * (tl.load(partial_rows + tensor) + number)
    tl.store(row, total)
    tl.store(row + 1, bad.to(tl.float64))


@triton.jit
def rests(pointers, scalars, tensor, tensors, COLUMNS: tl.constexpr):
    """Whether nothing is to change in a tensor."""
    absent = tl.load(pointers + GRAD * tensors.to(tl.int64) + tensor) == 0
    return absent | (tl.load(scalars + tensor * COLUMNS + SKIP) != 0)


@triton.jit(do_not_specialize=["tensors"])
def move(
    pointers,
    sizes,
    pieces,
    layouts,
    scalars,
    tensors,
    RULE_SCALARS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per piece of a vector: its sums are added up, and its mean squares move on."""
    columns: tl.constexpr = COMMON_SCALARS + RULE_SCALARS
    tensor, vector, first, last = load_row(pieces + PIECE_COLUMNS * tl.program_id(0), 1, 4)
    layout = layouts + LAYOUT_COLUMNS * tensor
    held, factor, parts, parts_of = load_row(layout + vector, 1, 4)
    count = tl.load(layout + tl.where(vector == OUTER_VECTOR, 2, 0))
    size = tl.load(sizes + tensor) // count
    grad_factor = tl.load(scalars + tensor * columns).to(tl.float64)
    weight = tl.load(scalars + tensor * columns + COMMON_SCALARS + WEIGHT)
    last = tl.where(rests(pointers, scalars, tensor, tensors, columns), first, last)
    for begin in range(first, last, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        there = at < last
        squares = tl.zeros([BLOCK], tl.float64)
        for part in range(0, parts_of):
            squares += tl.load(doubles(parts) + part * size + at, mask=there, other=0.0)
        mean = squares * (grad_factor * grad_factor) / count.to(tl.float64)
        states = held.to(tl.pointer_type(DTYPE)) + at
        state = tl.load(states, mask=there, other=0.0).to(tl.float32)
        state = lerp(state, mean.to(tl.float32), weight)
        tl.store(states, state.to(DTYPE), mask=there)
        tl.store(factor.to(tl.pointer_type(tl.float32)) + at, state, mask=there)


@triton.jit
def divisor_of(total, count, eps1):
    mean = (total / count.to(tl.float64)).to(tl.float32)
    return tl.where(mean < eps1, eps1, mean)


@triton.jit(do_not_specialize=["tensors"])
def divide(
    pointers,
    batches,
    layouts,
    scalars,
    tensors,
    RULE_SCALARS: tl.constexpr,
    FEW: tl.constexpr,
    LANES: tl.constexpr,
):
    """One program per batch of matrices: the rows of each are divided by their mean."""
    columns: tl.constexpr = COMMON_SCALARS + RULE_SCALARS
    tensor, first, last = load_row(batches + BATCH_COLUMNS * tl.program_id(0), 1, BATCH_COLUMNS)
    layout = load_row(layouts + LAYOUT_COLUMNS * tensor, 1, LAYOUT_COLUMNS)
    outer, between, inner, within, rows_are_outer = layout[:5]
    are_outer = rows_are_outer != 0
    count = tl.where(are_outer, outer, inner)
    stride = tl.where(are_outer, between * within, within)
    address = tl.where(are_outer, layout[OUTER_VECTOR + 1], layout[INNER_VECTOR + 1])
    factors = address.to(tl.pointer_type(tl.float32))
    eps1 = tl.load(scalars + tensor * columns + COMMON_SCALARS + EPS1)
    last = tl.where(rests(pointers, scalars, tensor, tensors, columns), first, last)
    lane = tl.arange(0, LANES)
    if count <= FEW:  # a matrix for each lane
        for begin in range(first, last, LANES):
            matrix = begin + lane
            there = matrix < last
            of_rows = factors + matrix // stride * count * stride + matrix % stride
            total = tl.zeros([LANES], tl.float64)
            for i in range(0, count):
                total += tl.load(of_rows + i * stride, mask=there, other=0.0).to(tl.float64)
            divisor = divisor_of(total, count, eps1)
            for i in range(0, count):
                row = tl.load(of_rows + i * stride, mask=there, other=0.0)
                tl.store(of_rows + i * stride, tl.div_rn(row, divisor), mask=there)
    else:
        for matrix in range(first, last):
            of_rows = factors + matrix // stride * count * stride + matrix % stride
            total = tl.zeros([LANES], tl.float64)
            for begin in range(0, count, LANES):
                row = begin + lane
                there = row < count
                total += tl.load(of_rows + row * stride, mask=there, other=0.0).to(tl.float64)
            divisor = divisor_of(tl.sum(total, 0), count, eps1)
            divisors = tl.zeros([LANES], tl.float32) + divisor
            for begin in range(0, count, LANES):
                row = begin + lane
                there = row < count
                value = tl.load(of_rows + row * stride, mask=there, other=0.0)
                tl.store(of_rows + row * stride, tl.div_rn(value, divisors), mask=there)


@triton.jit
def measure_block(
    addresses,
    beside,
    layout,
    scalars,
    at,
    lane,
    size,
    trusted,
    VECTOR: tl.constexpr,
    PER_THREAD: tl.constexpr,
    RULE_DIRECTION: tl.constexpr,
    STORAGES: tl.constexpr,
    DTYPES: tl.constexpr,
    BESIDE: tl.constexpr,
):
    """The squares of a block's directions and elements: one read of everything."""
    p = load(STORAGES[PARAM], DTYPES[PARAM], addresses[PARAM], beside[BESIDE[PARAM]],
             at, lane, size, trusted, VECTOR, PER_THREAD)  # fmt: skip
    g = load(STORAGES[GRAD], DTYPES[GRAD], addresses[GRAD], beside[0],
             at, lane, size, trusted, VECTOR, PER_THREAD) * scalars[0]  # fmt: skip
    if STORAGES[FIRST_STATE] == "factored":
        state = load_factored(
            addresses[FIRST_STATE], beside[BESIDE[FIRST_STATE]], layout, at, lane, size, VECTOR
        )
    else:
        state = load(STORAGES[FIRST_STATE], DTYPES[FIRST_STATE], addresses[FIRST_STATE],
                     beside[BESIDE[FIRST_STATE]], at, lane, size, trusted, VECTOR,
                     PER_THREAD)  # fmt: skip
    direction, _ = RULE_DIRECTION(g, (state,), scalars[COMMON_SCALARS:])
    if not VECTOR:
        direction = tl.where(at + lane < size, direction, 0.0)
        p = tl.where(at + lane < size, p, 0.0)
    return direction.to(tl.float64), p.to(tl.float64)


@triton.jit(do_not_specialize=["tensors"])
def measure(
    pointers,
    sizes,
    chunks,
    scalars,
    first_chunks,
    measures,
    tensors,
    RULE_DIRECTION: tl.constexpr,
    RULE_SCALARS: tl.constexpr,
    STORAGES: tl.constexpr,
    DTYPES: tl.constexpr,
    BESIDE: tl.constexpr,
    FIRST_BESIDE: tl.constexpr,
    ROWS_BESIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per chunk: the sums of squares of directions and elements.

    8 bytes per fp32 parameter, and 4 of a state that is one.
    """
    chunk = chunks + 2 * tl.program_id(0)
    tensor = tl.load(chunk)
    first = tl.multiple_of(tl.load(chunk + 1), CHUNK)
    size = tl.load(sizes + tensor)
    addresses = load_row(pointers + tensor, tensors.to(tl.int64), len(DTYPES))
    columns: tl.constexpr = COMMON_SCALARS + RULE_SCALARS
    row = load_row(scalars + tensor * columns, 1, columns)
    last = tl.minimum(first + CHUNK, size)
    last = tl.where((addresses[GRAD] == 0) | (row[SKIP] != 0), first, last)
    unaligned = addresses[PARAM] | addresses[GRAD]
    if STORAGES[FIRST_STATE] != "factored":
        unaligned |= addresses[FIRST_STATE]
    beside = (size,)
    layout = ()
    if ROWS_BESIDE > 0:
        beside = load_row(pointers + FIRST_BESIDE * tensors.to(tl.int64) + tensor,
                          tensors.to(tl.int64), ROWS_BESIDE)  # fmt: skip
        if BESIDE[PARAM] >= 0:
            unaligned |= beside[BESIDE[PARAM]]
        layout = layout_of(STORAGES, BESIDE, beside)
    by_vectors = tl.where(unaligned % 16 == 0, (last - first) // BLOCK * BLOCK, 0)
    TAIL: tl.constexpr = BLOCK // 2
    PER_THREAD: tl.constexpr = BLOCK // 128
    trusted = True
    if STORAGES[PARAM] == "split bfloat16":
        at_checksum = beside[BESIDE[PARAM] + 1].to(tl.pointer_type(tl.uint32)) + first // CHUNK
        seen = checksum_of(addresses[PARAM], first, by_vectors, last, size, BLOCK, TAIL)
        trusted = seen == tl.load(at_checksum)

    lane = tl.arange(0, BLOCK)
    directions = tl.zeros([BLOCK], tl.float64)
    params = tl.zeros([BLOCK], tl.float64)
    for at in range(first, first + by_vectors, BLOCK):
        direction, p = measure_block(
            addresses, beside, layout, row, at, lane, size, trusted, True, PER_THREAD,
            RULE_DIRECTION, STORAGES, DTYPES, BESIDE,
        )  # fmt: skip
        directions = tl.fma(direction, direction, directions)
        params = tl.fma(p, p, params)
    lane_of_tail = tl.arange(0, TAIL)
    tail_directions = tl.zeros([TAIL], tl.float64)
    tail_params = tl.zeros([TAIL], tl.float64)
    for at in range(first + by_vectors, last, TAIL):
        direction, p = measure_block(
            addresses, beside, layout, row, at, lane_of_tail, size, trusted, False, 1,
            RULE_DIRECTION, STORAGES, DTYPES, BESIDE,
        )  # fmt: skip
        tail_directions = tl.fma(direction, direction, tail_directions)
        tail_params = tl.fma(p, p, tail_params)
    to = measures + MEASURE_COLUMNS * (tl.load(first_chunks + tensor) + first // CHUNK)
    tl.store(to, tl.sum(directions, 0) + tl.sum(tail_directions, 0))
    tl.store(to + 2, tl.sum(params, 0) + tl.sum(tail_params, 0))


@triton.jit(do_not_specialize=["tensors"])
def scale(
    pointers,
    sizes,
    groups,
    hyperparameters,
    sources,
    scalars,
    first_chunks,
    measures,
    tensors,
    RULE_NEG_STEP: tl.constexpr,
    RULE_HYPERPARAMETERS: tl.constexpr,
    RULE_SCALARS: tl.constexpr,
    HELD: tl.constexpr,
    COUNTER: tl.constexpr,
    LANES: tl.constexpr,
):
    """One program per tensor: how far it goes, by what `measure` has found."""
    tensor = tl.program_id(0).to(tl.int64)
    of_scalars: tl.constexpr = COMMON_SCALARS + RULE_SCALARS
    columns: tl.constexpr = COMMON_HYPERPARAMETERS + RULE_HYPERPARAMETERS
    resting = rests(pointers, scalars, tensor, tensors, of_scalars)
    first = tl.load(first_chunks + tensor)
    last = tl.where(resting, first, tl.load(first_chunks + tensor + 1))
    lane = tl.arange(0, LANES)
    directions = tl.zeros([LANES], tl.float64)
    params = tl.zeros([LANES], tl.float64)
    for at in range(first, last, LANES):
        chunk = at + lane
        there = chunk < last
        directions += tl.load(measures + MEASURE_COLUMNS * chunk, mask=there, other=0.0)
        params += tl.load(measures + MEASURE_COLUMNS * chunk + 2, mask=there, other=0.0)
    size = tl.load(sizes + tensor).to(tl.float64)
    row = tl.load(groups + tensor) * columns
    if HELD:
        given = sources + SOURCE_COLUMNS * row
        loaded = load_row_or_tensors(hyperparameters + row, given, columns, True)
    else:
        loaded = load_row(hyperparameters + row, 1, columns)
    address = tl.load(pointers + STEP * tensors.to(tl.int64) + tensor)
    count = tl.load(address.to(tl.pointer_type(COUNTER))).to(tl.float64)
    neg_step = RULE_NEG_STEP(
        loaded[COMMON_HYPERPARAMETERS:], count, tl.sum(directions, 0) / size,
        tl.sum(params, 0) / size,
    )  # fmt: skip
    if not resting:
        to = scalars + tensor * of_scalars + COMMON_SCALARS + NEG_STEP
        tl.store(to, neg_step.to(tl.float32))
