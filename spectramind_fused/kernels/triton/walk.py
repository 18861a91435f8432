"""The two launches of a step in Triton: `advance` over tensors, `update` over chunks."""

from __future__ import annotations

import triton
import triton.language as tl

# Rows of the pointer table and leading columns of the others (csrc/tables.h).
PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
STEP = tl.constexpr(2)
FIRST_STATE = tl.constexpr(3)
COMMON_HYPERPARAMETERS = tl.constexpr(3)  # maximize, lookahead_k, lookahead_alpha
COMMON_SCALARS = tl.constexpr(3)  # grad factor, sync, sync alpha


@triton.jit
def load_row(base, stride, N: tl.constexpr, mask=None):
    """A tuple of N values, `stride` apart."""
    values = ()
    for j in tl.static_range(N):
        values = values + (tl.load(base + j * stride, mask=mask),)
    return values


@triton.jit(do_not_specialize=["tensors"])
def advance(
    pointers,
    groups,
    hyperparameters,
    scalars,
    tensors,
    RULE_SCALARS: tl.constexpr,
    RULE_HYPERPARAMETERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds 1 to each step counter and writes the scalars of each tensor, in float64 until stored.

    Some 150 bytes per tensor; nothing per parameter.
    """
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = tensor < tensors
    address = tl.load(pointers + STEP * tensors.to(tl.int64) + tensor, mask=mask, other=0)
    counter = address.to(tl.pointer_type(tl.float32))
    count = tl.load(counter, mask=mask, other=0.0) + 1.0
    tl.store(counter, count, mask=mask)
    step = count.to(tl.int64)

    columns: tl.constexpr = COMMON_HYPERPARAMETERS + RULE_HYPERPARAMETERS
    row = hyperparameters + tl.load(groups + tensor, mask=mask, other=0) * columns
    maximize, k, alpha = load_row(row, 1, COMMON_HYPERPARAMETERS, mask)
    own = load_row(row + COMMON_HYPERPARAMETERS, 1, RULE_HYPERPARAMETERS, mask)

    grad_factor = tl.where(maximize != 0, -1.0, 1.0)
    sync = (k > 0) & (step % tl.maximum(k.to(tl.int64), 1) == 0)
    values = (grad_factor, sync, alpha) + RULE_SCALARS(own, step)
    for j in tl.static_range(len(values)):
        tl.store(scalars + tensor * len(values) + j, values[j].to(tl.float32), mask=mask)


@triton.jit
def load(address, dtype: tl.constexpr, index, size, VECTOR: tl.constexpr):
    """A block of one slot, widened to float32.

    VECTOR promises a full block at an address of 16-byte alignment.
    """
    base = address.to(tl.pointer_type(dtype))
    if VECTOR:
        return tl.load(tl.multiple_of(base, 16) + index).to(tl.float32)
    else:
        return tl.load(base + index, mask=index < size).to(tl.float32)


@triton.jit
def store(address, dtype: tl.constexpr, index, size, VECTOR: tl.constexpr, value):
    """Rounds a block to the dtype of its slot, to nearest even, and writes it."""
    base = address.to(tl.pointer_type(dtype))
    if VECTOR:
        tl.store(tl.multiple_of(base, 16) + index, value.to(dtype))
    else:
        tl.store(base + index, value.to(dtype), mask=index < size)


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
):
    """One read and one write of everything a block holds.

    Per fp32 parameter: 12 bytes (p, g in, p out) and 8 for each state; 8 more for the slow
    weights when they sync, 0 when they do not.
    """
    grad_factor, sync, alpha = scalars[:COMMON_SCALARS]
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
            p = slow + alpha * (p - slow)
            store(addresses[slow_slot], DTYPES[slow_slot], index, size, VECTOR, p)
    store(addresses[PARAM], DTYPES[PARAM], index, size, VECTOR, p)
    for j in tl.static_range(FIRST_STATE, FIRST_STATE + STATES):
        store(addresses[j], DTYPES[j], index, size, VECTOR, states[j - FIRST_STATE])


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
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per chunk: full blocks of aligned tensors by vectors, the rest masked."""
    chunk = chunks + 2 * tl.program_id(0)
    tensor = tl.load(chunk)
    first = tl.multiple_of(tl.load(chunk + 1), CHUNK)
    size = tl.load(sizes + tensor)
    last = tl.minimum(first + CHUNK, size)
    addresses = load_row(pointers + tensor, tensors.to(tl.int64), len(DTYPES))
    columns: tl.constexpr = COMMON_SCALARS + RULE_SCALARS
    row = load_row(scalars + tensor * columns, 1, columns)

    # Slices and bucket views may start anywhere; a false promise of alignment faults.
    # The step counter's row is no tensor data and is left out.
    unaligned = addresses[PARAM] | addresses[GRAD]
    for j in tl.static_range(FIRST_STATE, len(DTYPES)):
        unaligned |= addresses[j]
    by_vectors = tl.where(unaligned % 16 == 0, (last - first) // BLOCK * BLOCK, 0)

    lane = tl.arange(0, BLOCK)
    for at in range(first, first + by_vectors, BLOCK):
        index = at + lane
        update_block(addresses, row, index, size, True, RULE_UPDATE, DTYPES, STATES, LOOKAHEAD)
    # Blocks of another size: were they alike, Triton would lay both paths out for vectors and
    # shuffle the masked one through shared memory.
    TAIL: tl.constexpr = BLOCK // 2
    lane_of_tail = tl.arange(0, TAIL)
    for at in range(first + by_vectors, last, TAIL):
        index = at + lane_of_tail
        update_block(addresses, row, index, size, False, RULE_UPDATE, DTYPES, STATES, LOOKAHEAD)
