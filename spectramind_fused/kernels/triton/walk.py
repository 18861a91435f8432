"""Two launches of a step in Triton: `advance` over tensors, `update` over chunks."""

from __future__ import annotations

import triton
import triton.language as tl

from spectramind_fused.kernels.triton.access import load, load_row, store
from spectramind_fused.kernels.triton.norm import sum_of_rows
from spectramind_fused.kernels.triton.rules import lerp

# Rows of the pointer table and leading columns of the others (csrc/tables.h).
PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
STEP = tl.constexpr(2)
FIRST_STATE = tl.constexpr(3)
# maximize, max norm, lookahead k, lookahead alpha, EMA decay
COMMON_HYPERPARAMETERS = tl.constexpr(5)
COMMON_SCALARS = tl.constexpr(5)  # grad factor, skip, sync, sync alpha, EMA weight
SOURCE_COLUMNS = tl.constexpr(2)  # address, dtype
FLOAT64 = tl.constexpr(1)  # `Dtype` in csrc/tables.h


@triton.jit
def load_row_or_tensors(values, sources, N: tl.constexpr, mask):
    """As load_row; a value may be in a tensor of the user's, whose address and dtype are given."""
    loaded = ()
    for j in tl.static_range(N):
        address = tl.load(sources + SOURCE_COLUMNS * j, mask=mask, other=0)
        wide = tl.load(sources + SOURCE_COLUMNS * j + 1, mask=mask, other=0) == FLOAT64
        given = address != 0
        single = address.to(tl.pointer_type(tl.float32))
        double = address.to(tl.pointer_type(tl.float64))
        held = tl.load(single, mask=mask & given & ~wide, other=0.0).to(tl.float64)
        held = tl.where(wide, tl.load(double, mask=mask & wide, other=0.0), held)
        loaded = loaded + (tl.where(given, held, tl.load(values + j, mask=mask)),)
    return loaded


@triton.jit
def clip_coefficient(norm, max_norm):
    """The coefficient of torch.nn.utils.clip_grad_norm_. It is NaN if the norm is NaN."""
    coefficient = max_norm / (norm + 1e-6)
    return tl.where(coefficient > 1, 1.0, coefficient)


@triton.jit(do_not_specialize=["tensors", "rows", "first_number"])
def advance(
    pointers,
    groups,
    hyperparameters,
    sources,
    scalars,
    tensors,
    first_number,
    sums,
    rows,
    norm,
    nonfinite,
    grad_scale,
    found_inf,
    RULE_SCALARS: tl.constexpr,
    RULE_HYPERPARAMETERS: tl.constexpr,
    HELD: tl.constexpr,
    REDUCED: tl.constexpr,
    SCALED: tl.constexpr,
    FOUND_INF: tl.constexpr,
    SKIP_NONFINITE: tl.constexpr,
    COUNTER: tl.constexpr,
    NUMBERS: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_OF_ROWS: tl.constexpr,
):
    """Adds 1 to each step counter, unless the step is skipped, and writes each tensor's scalars.

    With the counter move the numbers that the rule keeps of a tensor: NUMBERS of them, from the row
    `first_number` on. A tensor without a gradient keeps its counter. Every program adds up the sums
    for itself: some thousands at most, where `reduce` has run before. Some 200 bytes per tensor;
    nothing per parameter. Float64 until stored.
    """
    unscale = 1.0
    if SCALED:
        unscale = 1 / tl.load(grad_scale).to(tl.float64)
    skip = tl.program_id(0) < 0
    if FOUND_INF:
        skip = tl.load(found_inf) != 0
    total_norm = 0.0
    if REDUCED:
        squares, bad = sum_of_rows(sums, 0, rows, BLOCK_OF_ROWS)
        total_norm = tl.sqrt(squares) * unscale
        if SKIP_NONFINITE:
            skip = skip | (bad != 0)
        if tl.program_id(0) == 0:
            tl.store(norm, total_norm)
            tl.store(nonfinite, tl.where(bad != 0, 1.0, 0.0))

    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = tensor < tensors
    gradient = tl.load(pointers + GRAD * tensors.to(tl.int64) + tensor, mask=mask, other=0)
    mask = mask & (gradient != 0)
    address = tl.load(pointers + STEP * tensors.to(tl.int64) + tensor, mask=mask, other=0)
    counter = address.to(tl.pointer_type(COUNTER))
    count = tl.load(counter, mask=mask, other=0.0) + tl.where(skip, 0.0, 1.0).to(COUNTER)
    tl.store(counter, count, mask=mask)
    count = count.to(tl.float64)
    # The count is 0 only if the very first step is skipped. The cap, just below 2^31, is as good as
    # inf for the exponent of a beta. It is a float32 value: Triton before 3.9 rounds it to float32.
    step = tl.minimum(tl.maximum(count, 1.0), 2147483520.0).to(tl.int64)

    columns: tl.constexpr = COMMON_HYPERPARAMETERS + RULE_HYPERPARAMETERS
    row = tl.load(groups + tensor, mask=mask, other=0) * columns
    if HELD:
        given = sources + SOURCE_COLUMNS * row
        loaded = load_row_or_tensors(hyperparameters + row, given, columns, mask)
    else:
        loaded = load_row(hyperparameters + row, 1, columns, mask)
    maximize, max_norm, k, alpha, ema_decay = loaded[:COMMON_HYPERPARAMETERS]

    grad_factor = tl.where(maximize != 0, -1.0, 1.0)
    if REDUCED:
        grad_factor *= clip_coefficient(total_norm, max_norm)
    grad_factor *= unscale
    countable = (k >= 1) & (count < 9e18)  # after infinitely many steps none syncs
    whole = tl.where(countable, count, 1.0).to(tl.int64)
    sync = countable & (whole % tl.maximum(k.to(tl.int64), 1) == 0)
    ema_weight = tl.where(ema_decay < 0, -1.0, 1 - ema_decay)
    values = (grad_factor, skip, sync, alpha, ema_weight)
    numbers = ()
    for j in tl.static_range(NUMBERS):
        row_of_number = (first_number + j) * tensors.to(tl.int64)
        address = tl.load(pointers + row_of_number + tensor, mask=mask, other=0)
        number = tl.load(address.to(tl.pointer_type(NUMBER)), mask=mask, other=0.0)
        numbers = numbers + (number,)
    of_rule, moved = RULE_SCALARS(loaded[COMMON_HYPERPARAMETERS:], step, numbers)
    for j in tl.static_range(NUMBERS):
        row_of_number = (first_number + j) * tensors.to(tl.int64)
        address = tl.load(pointers + row_of_number + tensor, mask=mask, other=0)
        number = tl.where(skip == 0, moved[j].to(NUMBER), numbers[j])
        tl.store(address.to(tl.pointer_type(NUMBER)), number, mask=mask)
    values = values + of_rule
    for j in tl.static_range(len(values)):
        tl.store(scalars + tensor * len(values) + j, values[j].to(tl.float32), mask=mask)


@triton.jit
def update_block(
    addresses,
    scalars,
    index,
    size,
    VECTOR: tl.constexpr,
    RULE_UPDATE: tl.constexpr,
    DTYPES: tl.constexpr,
    STATES: tl.constexpr,
    LOOKAHEAD: tl.constexpr,
    EMA: tl.constexpr,
    ZERO_GRADS: tl.constexpr,
):
    """One read and one write of everything a block holds.

    Per fp32 parameter: 12 bytes (p, g in, p out) and 8 for each state; 8 more for the slow
    weights when they sync, 0 when they do not; 8 for the averaged weights; 4 to zero the
    gradient.
    """
    grad_factor, skip, sync, alpha, ema_weight = scalars[:COMMON_SCALARS]
    if skip == 0:
        p = load(addresses[PARAM], DTYPES[PARAM], index, size, VECTOR)
        g = load(addresses[GRAD], DTYPES[GRAD], index, size, VECTOR) * grad_factor
        states = ()
        for j in tl.static_range(FIRST_STATE, FIRST_STATE + STATES):
            states = states + (load(addresses[j], DTYPES[j], index, size, VECTOR),)

        p, states = RULE_UPDATE(p, g, states, scalars[COMMON_SCALARS:])

        if LOOKAHEAD:
            slow_slot: tl.constexpr = FIRST_STATE + STATES
            if sync != 0:  # Zhang et al. 2019: slow += alpha * (fast - slow); fast = slow
                slow = load(addresses[slow_slot], DTYPES[slow_slot], index, size, VECTOR)
                p = tl.fma(alpha, p - slow, slow)
                store(addresses[slow_slot], DTYPES[slow_slot], index, size, VECTOR, p)
        store(addresses[PARAM], DTYPES[PARAM], index, size, VECTOR, p)
        if EMA:
            ema_slot: tl.constexpr = FIRST_STATE + STATES + LOOKAHEAD
            if ema_weight >= 0:
                average = load(addresses[ema_slot], DTYPES[ema_slot], index, size, VECTOR)
                average = lerp(average, p, ema_weight)
                store(addresses[ema_slot], DTYPES[ema_slot], index, size, VECTOR, average)
        for j in tl.static_range(FIRST_STATE, FIRST_STATE + STATES):
            store(addresses[j], DTYPES[j], index, size, VECTOR, states[j - FIRST_STATE])
    if ZERO_GRADS:
        zeros = tl.zeros(index.shape, tl.float32)
        store(addresses[GRAD], DTYPES[GRAD], index, size, VECTOR, zeros)


@triton.jit(do_not_specialize=["tensors"])
def update(
    pointers,
    sizes,
    chunks,
    scalars,
    tensors,
    RULE_UPDATE: tl.constexpr,
    RULE_SCALARS: tl.constexpr,
    DTYPES: tl.constexpr,
    STATES: tl.constexpr,
    LOOKAHEAD: tl.constexpr,
    EMA: tl.constexpr,
    ZERO_GRADS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per chunk: full blocks of aligned tensors by vectors, the rest masked."""
    chunk = chunks + 2 * tl.program_id(0)
    tensor = tl.load(chunk)
    first = tl.multiple_of(tl.load(chunk + 1), CHUNK)
    size = tl.load(sizes + tensor)
    addresses = load_row(pointers + tensor, tensors.to(tl.int64), len(DTYPES))
    columns: tl.constexpr = COMMON_SCALARS + RULE_SCALARS
    row = load_row(scalars + tensor * columns, 1, columns)
    skip = row[1]
    last = tl.minimum(first + CHUNK, size)
    idle = addresses[GRAD] == 0
    if not ZERO_GRADS:
        idle = idle | (skip != 0)
    last = tl.where(idle, first, last)

    # Slices and bucket views may start anywhere; a false promise of alignment faults.
    # The step counter's row is no tensor data and is left out.
    unaligned = addresses[PARAM] | addresses[GRAD]
    for j in tl.static_range(FIRST_STATE, len(DTYPES)):
        unaligned |= addresses[j]
    by_vectors = tl.where(unaligned % 16 == 0, (last - first) // BLOCK * BLOCK, 0)

    lane = tl.arange(0, BLOCK)
    for at in range(first, first + by_vectors, BLOCK):
        update_block(
            addresses, row, at + lane, size, True,
            RULE_UPDATE, DTYPES, STATES, LOOKAHEAD, EMA, ZERO_GRADS,
        )  # fmt: skip
    # Blocks of another size: were they alike, Triton would lay both paths out for vectors and
    # shuffle the masked one through shared memory.
    TAIL: tl.constexpr = BLOCK // 2
    lane_of_tail = tl.arange(0, TAIL)
    for at in range(first + by_vectors, last, TAIL):
        update_block(
            addresses, row, at + lane_of_tail, size, False,
            RULE_UPDATE, DTYPES, STATES, LOOKAHEAD, EMA, ZERO_GRADS,
        )  # fmt: skip
