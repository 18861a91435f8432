"""Two launches of a step in Triton: `advance` over tensors, `update` over chunks."""

from __future__ import annotations

import triton
import triton.language as tl

from spectramind_fused.kernels.triton.norm import load_row, sum_of_rows
from spectramind_fused.kernels.triton.rules import lerp
from spectramind_fused.kernels.triton.storage import (
    check_of,
    load,
    load_factored,
    load_row_of,
    split,
    store,
)

# Rows of the pointer table and leading columns of the others (csrc/tables.h).
PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
STEP = tl.constexpr(2)
FIRST_STATE = tl.constexpr(3)
# maximize, max norm, lookahead k, lookahead alpha, EMA decay
COMMON_HYPERPARAMETERS = tl.constexpr(5)
COMMON_SCALARS = tl.constexpr(5)  # grad factor, skip, sync, sync alpha, EMA weight
SOURCE_COLUMNS = tl.constexpr(2)  # address, dtype
PLACE_COLUMNS = tl.constexpr(5)  # parameter, offset, run, stride, seed
# Just below 2^31, as good as infinity for the exponent of a beta (`beta_exponent` in csrc/walk.h).
# It is a float32 value: Triton before 3.9 rounds it to float32.
MOST_STEPS = tl.constexpr(2147483520.0)
SLOW_STREAM = tl.constexpr(14)  # `Stream` in csrc/random.h
AVERAGE_STREAM = tl.constexpr(15)
FLOAT64 = tl.constexpr(1)  # `Stored` in csrc/tables.h


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
    # The count is 0 only if the very first step is skipped.
    step = tl.minimum(tl.maximum(count, 1.0), MOST_STEPS).to(tl.int64)

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
def layout_of(STORAGES: tl.constexpr, BESIDE: tl.constexpr, beside):
    """How a factored tensor lies: outer, between, inner and within; of others nothing."""
    if len(STORAGES) > FIRST_STATE:
        if STORAGES[FIRST_STATE] == "factored":
            row = beside[BESIDE[FIRST_STATE] + 1].to(tl.pointer_type(tl.int64))
            return load_row(row, 1, 4)
        else:
            return ()
    else:
        return ()


@triton.jit
def update_block(
    addresses,
    beside,
    layout,
    draw,
    scalars,
    at,
    lane,
    size,
    trusted,
    VECTOR: tl.constexpr,
    PER_THREAD: tl.constexpr,
    RULE_UPDATE: tl.constexpr,
    STORAGES: tl.constexpr,
    DTYPES: tl.constexpr,
    BESIDE: tl.constexpr,
    STATES: tl.constexpr,
    LOOKAHEAD: tl.constexpr,
    EMA: tl.constexpr,
    ZERO_GRADS: tl.constexpr,
    IN_EIGHTHS: tl.constexpr,
):
    """One read and one write of everything a block holds.

    Per fp32 parameter: 12 bytes (p, g in, p out) and 8 for each state; 8 more for the slow
    weights when they sync, 0 when they do not; 8 for the averaged weights; 4 to zero the
    gradient. Beside a split parameter 4 more, beside one with a master 8.

    Returns:
        What a split parameter's elements add to its checksum.
    """
    grad_factor, skip, sync, alpha, ema_weight = scalars[:COMMON_SCALARS]
    checks = tl.zeros(lane.shape, tl.uint32)
    if skip == 0:
        p = load(STORAGES[PARAM], DTYPES[PARAM], addresses[PARAM], beside[BESIDE[PARAM]],
                 at, lane, size, trusted, VECTOR, PER_THREAD)  # fmt: skip
        g = load(STORAGES[GRAD], DTYPES[GRAD], addresses[GRAD], beside[0],
                 at, lane, size, trusted, VECTOR, PER_THREAD) * grad_factor  # fmt: skip
        states = ()
        for j in tl.static_range(FIRST_STATE, FIRST_STATE + STATES):
            if STORAGES[j] == "factored":
                state = load_factored(
                    addresses[j], beside[BESIDE[j]], layout, at, lane, size, VECTOR
                )
            else:
                state = load(STORAGES[j], DTYPES[j], addresses[j], beside[BESIDE[j]],
                             at, lane, size, trusted, VECTOR, PER_THREAD)  # fmt: skip
            states = states + (state,)

        p, states = RULE_UPDATE(p, g, states, scalars[COMMON_SCALARS:])

        if LOOKAHEAD:
            slow_slot: tl.constexpr = FIRST_STATE + STATES
            if sync != 0:  # Zhang et al. 2019: slow += alpha * (fast - slow); fast = slow
                slow = load(STORAGES[slow_slot], DTYPES[slow_slot], addresses[slow_slot],
                            beside[0], at, lane, size, trusted, VECTOR, PER_THREAD)  # fmt: skip
                p = tl.fma(alpha, p - slow, slow)
                store(STORAGES[slow_slot], DTYPES[slow_slot], addresses[slow_slot], beside[0],
                      at, lane, size, p, draw, SLOW_STREAM, VECTOR, PER_THREAD,
                      IN_EIGHTHS)  # fmt: skip
        store(STORAGES[PARAM], DTYPES[PARAM], addresses[PARAM], beside[BESIDE[PARAM]],
              at, lane, size, p, draw, PARAM, VECTOR, PER_THREAD, IN_EIGHTHS)  # fmt: skip
        if STORAGES[PARAM] == "split bfloat16":
            checks = check_of(split(p)[0], at + lane)
            if not VECTOR:
                checks = tl.where(at + lane < size, checks, 0)
        if EMA:
            ema_slot: tl.constexpr = FIRST_STATE + STATES + LOOKAHEAD
            if ema_weight >= 0:
                average = load(STORAGES[ema_slot], DTYPES[ema_slot], addresses[ema_slot],
                               beside[0], at, lane, size, trusted, VECTOR, PER_THREAD)  # fmt: skip
                average = lerp(average, p, ema_weight)
                store(STORAGES[ema_slot], DTYPES[ema_slot], addresses[ema_slot], beside[0],
                      at, lane, size, average, draw, AVERAGE_STREAM, VECTOR, PER_THREAD,
                      IN_EIGHTHS)  # fmt: skip
        for j in tl.static_range(FIRST_STATE, FIRST_STATE + STATES):
            if STORAGES[j] != "factored":
                store(STORAGES[j], DTYPES[j], addresses[j], beside[BESIDE[j]],
                      at, lane, size, states[j - FIRST_STATE], draw, j, VECTOR, PER_THREAD,
                      IN_EIGHTHS)  # fmt: skip
    if ZERO_GRADS:
        zeros = tl.zeros(lane.shape, tl.float32)
        store(STORAGES[GRAD], DTYPES[GRAD], addresses[GRAD], beside[0], at, lane, size, zeros,
              draw, GRAD, VECTOR, PER_THREAD, IN_EIGHTHS)  # fmt: skip
    return checks


@triton.jit
def checksum_of(address, first, by_vectors, last, size, BLOCK: tl.constexpr, TAIL: tl.constexpr):
    """Of a piece of a split parameter, as it is now; the update reads it again from the cache."""
    seen = tl.zeros([BLOCK], tl.uint32)
    lane = tl.arange(0, BLOCK)
    for at in range(first, first + by_vectors, BLOCK):
        seen += check_of(load_row_of(address, tl.uint16, at + lane, size, True), at + lane)
    in_tail = tl.zeros([TAIL], tl.uint32)
    lane_of_tail = tl.arange(0, TAIL)
    for at in range(first + by_vectors, last, TAIL):
        index = at + lane_of_tail
        check = check_of(load_row_of(address, tl.uint16, index, size, False), index)
        in_tail += tl.where(index < size, check, 0).to(tl.uint32)
    return tl.sum(seen, 0) + tl.sum(in_tail, 0)


@triton.jit(do_not_specialize=["tensors"])
def update(
    pointers,
    sizes,
    chunks,
    places,
    scalars,
    tensors,
    RULE_UPDATE: tl.constexpr,
    RULE_SCALARS: tl.constexpr,
    STORAGES: tl.constexpr,
    DTYPES: tl.constexpr,
    BESIDE: tl.constexpr,
    FIRST_BESIDE: tl.constexpr,
    ROWS_BESIDE: tl.constexpr,
    STATES: tl.constexpr,
    LOOKAHEAD: tl.constexpr,
    EMA: tl.constexpr,
    ZERO_GRADS: tl.constexpr,
    RANDOM: tl.constexpr,
    IN_EIGHTHS: tl.constexpr,
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
        if STORAGES[j] != "factored":
            unaligned |= addresses[j]
    beside = (size,)  # for nobody to read; a slot that has nothing beside it asks for the last
    layout = ()
    if ROWS_BESIDE > 0:
        beside = load_row(pointers + FIRST_BESIDE * tensors.to(tl.int64) + tensor,
                          tensors.to(tl.int64), ROWS_BESIDE)  # fmt: skip
        if BESIDE[PARAM] >= 0:  # a remainder or a master: read by vectors, too
            unaligned |= beside[BESIDE[PARAM]]
        layout = layout_of(STORAGES, BESIDE, beside)
    by_vectors = tl.where(unaligned % 16 == 0, (last - first) // BLOCK * BLOCK, 0)

    draw = ()
    if RANDOM:
        place = load_row(places + PLACE_COLUMNS * tensor, 1, PLACE_COLUMNS)
        count = tl.load(addresses[STEP].to(tl.pointer_type(tl.float64)))
        step = tl.minimum(count, MOST_STEPS).to(tl.int32)
        draw = (place[1], place[2], place[3], place[4], place[0].to(tl.int32), step)

    # Blocks of another size: were they alike, Triton would lay both paths out for vectors and
    # shuffle the masked one through shared memory.
    TAIL: tl.constexpr = BLOCK // 2
    PER_THREAD: tl.constexpr = BLOCK // 128
    SPLIT: tl.constexpr = STORAGES[PARAM] == "split bfloat16"
    trusted = True
    if SPLIT:
        at_checksum = beside[BESIDE[PARAM] + 1].to(tl.pointer_type(tl.uint32)) + first // CHUNK
        seen = checksum_of(addresses[PARAM], first, by_vectors, last, size, BLOCK, TAIL)
        trusted = seen == tl.load(at_checksum)
        checks = tl.zeros([BLOCK], tl.uint32)
        checks_of_tail = tl.zeros([TAIL], tl.uint32)

    lane = tl.arange(0, BLOCK)
    for at in range(first, first + by_vectors, BLOCK):
        added = update_block(
            addresses, beside, layout, draw, row, at, lane, size, trusted, True, PER_THREAD,
            RULE_UPDATE, STORAGES, DTYPES, BESIDE, STATES, LOOKAHEAD, EMA, ZERO_GRADS, IN_EIGHTHS,
        )  # fmt: skip
        if SPLIT:
            checks += added
    lane_of_tail = tl.arange(0, TAIL)
    for at in range(first + by_vectors, last, TAIL):
        added = update_block(
            addresses, beside, layout, draw, row, at, lane_of_tail, size, trusted, False, 1,
            RULE_UPDATE, STORAGES, DTYPES, BESIDE, STATES, LOOKAHEAD, EMA, ZERO_GRADS, IN_EIGHTHS,
        )  # fmt: skip
        if SPLIT:
            checks_of_tail += added
    if SPLIT:
        if (last > first) & (skip == 0):
            tl.store(at_checksum, tl.sum(checks, 0) + tl.sum(checks_of_tail, 0))
