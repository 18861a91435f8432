"""What is stored in fewer bits than it is computed with: how a float32 becomes that, and back.

The pairs of functions of csrc/storages.h, which says why, with the same bits; `load` and `store`
are the only ones that reach memory. A slot's `STORAGE` is its name in multi_tensor/storages.py.
What is loaded of 16 bits that are no plain dtype is a uint16.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAGNITUDE = tl.constexpr(0x7FFFFFFF)
INFINITY = tl.constexpr(0x7F800000)
GROUP = tl.constexpr(32)  # elements that share a scale


@triton.jit
def bits_of(value):
    return value.to(tl.uint32, bitcast=True)


@triton.jit
def float_of(bits):
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def from_bfloat16(raw):
    return float_of(raw.to(tl.uint32) << 16)


@triton.jit
def to_nearest(value, HALF: tl.constexpr):
    """The 16 bits of the nearest value of a dtype."""
    return value.to(HALF).to(tl.uint16, bitcast=True)


@triton.jit
def random_bits(draw, stream: tl.constexpr, at, lane, IN_EIGHTHS: tl.constexpr):
    """16 random bits for each element of a block: Philox4x32-10, as csrc/random.h has it.

    Elements `at + lane` of a tensor; `at` is a multiple of 8. Where eight elements share a call,
    the compiler makes one of a thread's eight.
    """
    offset, run, stride, seed, parameter, step = draw
    if IN_EIGHTHS:
        call = ((at + offset) // 8).to(tl.uint32) + (lane // 8).to(tl.uint32)
        place = lane % 8
    else:
        index = at + lane
        element = offset + index // run * stride + index % run
        call = (element // 8).to(tl.uint32)
        place = (element % 8).to(tl.int32)
    of_stream = parameter * 0 + stream
    a, b, c, d = tl.philox(seed, call, step, parameter, of_stream)
    word = tl.where(place < 4, tl.where(place < 2, a, b), tl.where(place < 6, c, d))
    return tl.where(place % 2 == 0, word & 0xFFFF, word >> 16)


@triton.jit
def stochastic_bfloat16(value, random):
    raw = bits_of(value)
    magnitude = raw & MAGNITUDE
    rounded = tl.where(magnitude < INFINITY, raw + random, raw) >> 16
    return tl.where(magnitude > INFINITY, 0x7FC0, rounded).to(tl.uint16)


@triton.jit
def stochastic_float16(value, random):
    raw = bits_of(value)
    magnitude = raw & MAGNITUDE
    small = magnitude < 0x38800000
    # The bits are used twice. Mixed with the value and masked again they are the same, but made
    # once, in the value's layout: else Triton converts layouts, through shared memory.
    random = (raw & 0x80000000 | random) & 0xFFFF
    units = float_of(tl.where(small, magnitude, 0)) * 16777216.0
    fraction = random.to(tl.int32).to(tl.float32) * 0.0000152587890625
    subnormal = (units + fraction).to(tl.int32).to(tl.uint32)
    normal = (magnitude - 0x38000000 + (random >> 3)) >> 13
    half = tl.where(small, subnormal, normal)
    half = tl.where(magnitude >= 0x47800000, 0x7C00, half) | (raw >> 16) & 0x8000
    return tl.where(magnitude > INFINITY, 0x7E00, half).to(tl.uint16)


@triton.jit
def join(upper, remainder):
    return float_of((upper.to(tl.uint32) << 16) + remainder.to(tl.int32).to(tl.uint32))


@triton.jit
def split(value):
    whole = tl.where(value != value, 0x7FC00000, bits_of(value)).to(tl.uint32)
    upper = ((whole + 0x8000) >> 16).to(tl.uint16)
    return upper, whole.to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def check_of(upper, index):
    mixed = (upper.to(tl.uint32) * 0x9E3779B1) ^ (index.to(tl.uint32) * 0x85EBCA6B)
    return (mixed ^ (mixed >> 15)) * 0xC2B2AE35


@triton.jit
def finite_magnitude(value):
    magnitude = bits_of(value) & MAGNITUDE
    return tl.where(magnitude < INFINITY, magnitude, 0).to(tl.uint32)


@triton.jit
def scale_of(largest):
    return tl.minimum((largest + 0xFFFF) >> 16, 0x7F7F).to(tl.uint16)


@triton.jit
def steps_of(part, random, most: tl.constexpr):
    fraction = random.to(tl.int32).to(tl.float32) * 0.0000152587890625
    return tl.minimum(tl.fma(part, 254.0, fraction).to(tl.int32), most)


@triton.jit
def to_signed8(value, scale, random):
    magnitude = bits_of(value) & MAGNITUDE
    half = 0.5 * float_of(finite_magnitude(value))
    total = half + 0.5 * scale
    steps = steps_of(tl.div_rn(half, tl.where(total > 0, total, 1.0)), random, 127)
    code = tl.where(bits_of(value) > MAGNITUDE, -steps, steps)
    return tl.where(magnitude < INFINITY, code, -128).to(tl.int8)


@triton.jit
def from_signed8(code, scale):
    steps = code.to(tl.int32).to(tl.float32)
    size = tl.abs(steps)
    value = scale * tl.div_rn(steps, 254.0 - size)
    return tl.where(size > 127, float("nan"), value)


@triton.jit
def to_unsigned8(root, scale, random):
    finite = float_of(finite_magnitude(root))
    steps = steps_of(tl.div_rn(finite, tl.where(scale > 0, scale, 1.0)), random, 254)
    code = tl.where((finite > 0) & (steps < 1), 1, steps)
    return tl.where((bits_of(root) & MAGNITUDE) < INFINITY, code, 255).to(tl.uint8)


@triton.jit
def from_unsigned8(code, scale):
    steps = code.to(tl.int32).to(tl.float32)
    root = scale * (steps * 0.003937007859349251)  # 1 / 254
    return tl.where(steps > 254, float("inf"), root * root)


@triton.jit
def spread(values, TIMES: tl.constexpr):
    """Each value so many times, one after the other."""
    COUNT: tl.constexpr = values.shape[0]
    return tl.reshape(tl.broadcast_to(values[:, None], (COUNT, TIMES)), (COUNT * TIMES,))


@triton.jit
def load_row_of(address, DTYPE: tl.constexpr, index, size, VECTOR: tl.constexpr):
    """A value for each element. VECTOR promises a full block at an address of 16 bytes."""
    base = address.to(tl.pointer_type(DTYPE))
    if VECTOR:
        return tl.load(tl.multiple_of(base, 16) + index)
    else:
        return tl.load(base + index, mask=index < size, other=0)


@triton.jit
def store_row_of(address, index, size, VECTOR: tl.constexpr, values):
    """As `load_row_of`."""
    base = address.to(tl.pointer_type(values.dtype))
    if VECTOR:
        tl.store(tl.multiple_of(base, 16) + index, values)
    else:
        tl.store(base + index, values, mask=index < size)


@triton.jit
def quotient(value, divisor, most: tl.constexpr):
    """Value // divisor, of values in [0, divisor + most); most is at most 2**14.

    By a multiplication, which is exact as long as the divisor is below 2**14, too.
    """
    few = tl.minimum(divisor, most).to(tl.uint32)
    inverse = ((1 << 32) + few.to(tl.int64) - 1) // few.to(tl.int64)
    by_product = tl.umulhi(value.to(tl.uint32), value.to(tl.uint32) * 0 + inverse.to(tl.uint32))
    large = (value >= divisor).to(tl.uint32)
    found = tl.where(divisor >= most, large, by_product)
    return tl.where(divisor == 1, value.to(tl.uint32), found).to(tl.int32)


@triton.jit
def load_factored(own, beside, layout, at, lane, size, VECTOR: tl.constexpr):
    """A block of products of two vectors (csrc/factored.h).

    Args:
        own: address of the outer vector.
        beside: of the inner vector.
        layout: of the tensor: outer, between, inner and within.
        at: the first element; the others' are `lane` from there.
        lane: below 2**13.
        size: of the tensor.
        VECTOR: promises a full block.
    """
    outer, between, inner, within = layout
    stretch = inner * within
    line = between * stretch
    matrices = outer * line
    # Of the first element in 64 bits, of the others from there.
    in_within = (at % within).to(tl.int32) + lane
    in_within -= quotient(in_within, within, 8192) * within.to(tl.int32)
    stretches = at // stretch + quotient((at % stretch).to(tl.int32) + lane, stretch, 8192)
    in_line = (at % line).to(tl.int32) + lane
    in_line -= quotient(in_line, line, 8192) * line.to(tl.int32)
    before = at // matrices + quotient(at % matrices + lane, matrices, 8192)
    of_outer = own.to(tl.pointer_type(tl.float32)) + stretches * within + in_within
    of_inner = beside.to(tl.pointer_type(tl.float32)) + before * line + in_line
    if VECTOR:
        return tl.load(of_outer) * tl.load(of_inner)
    else:
        mask = at + lane < size
        return tl.load(of_outer, mask=mask, other=0.0) * tl.load(of_inner, mask=mask, other=0.0)


@triton.jit
def load(STORAGE: tl.constexpr, DTYPE: tl.constexpr, own, beside, at, lane, size, trusted,
         VECTOR: tl.constexpr, PER_THREAD: tl.constexpr):  # fmt: skip
    """A block of one slot, widened to float32.

    Args:
        STORAGE: of the slot.
        DTYPE: of what its own row is loaded as.
        own: address of its own row.
        beside: of the row beside it, where there is one.
        at: the first element.
        lane: the others', from there.
        size: of the tensor.
        trusted: whether a remainder belongs to what is there.
        VECTOR: promises a full block at addresses of 16 bytes.
        PER_THREAD: elements that a thread holds side by side.
    """
    index = at + lane
    raw = load_row_of(own, DTYPE, index, size, VECTOR)
    if STORAGE == "stochastic bfloat16":
        return from_bfloat16(raw)
    elif STORAGE == "stochastic float16":
        return raw.to(tl.float16, bitcast=True).to(tl.float32)
    elif STORAGE == "split bfloat16":
        remainder = load_row_of(beside, tl.int16, index, size, VECTOR)
        return join(raw, tl.where(trusted, remainder, 0))
    elif STORAGE == "master bfloat16":
        master = load_row_of(beside, tl.float32, index, size, VECTOR)
        return tl.where(to_nearest(master, tl.bfloat16) == raw, master, from_bfloat16(raw))
    elif STORAGE == "master float16":
        master = load_row_of(beside, tl.float32, index, size, VECTOR)
        wide = raw.to(tl.float16, bitcast=True).to(tl.float32)
        return tl.where(to_nearest(master, tl.float16) == raw, master, wide)
    elif STORAGE == "signed8" or STORAGE == "unsigned8":
        # One scale for what a thread holds: a group is several threads'.
        BLOCK: tl.constexpr = lane.shape[0]
        first = tl.arange(0, BLOCK // PER_THREAD) * PER_THREAD
        scales = beside.to(tl.pointer_type(tl.uint16)) + at // GROUP + first // GROUP
        if VECTOR:
            scale = tl.load(scales)
        else:
            scale = tl.load(scales, mask=at + first < size, other=0)
        scale = spread(from_bfloat16(scale), PER_THREAD)
        if STORAGE == "signed8":
            return from_signed8(raw, scale)
        else:
            return from_unsigned8(raw, scale)
    else:
        return raw.to(tl.float32)


@triton.jit
def store(STORAGE: tl.constexpr, DTYPE: tl.constexpr, own, beside, at, lane, size, value, draw,
          stream: tl.constexpr, VECTOR: tl.constexpr, PER_THREAD: tl.constexpr,
          IN_EIGHTHS: tl.constexpr):  # fmt: skip
    """Rounds a block to what its slot stores, and writes it.

    As `load`; `draw` says whose random bits, `stream` which of its.
    """
    index = at + lane
    if STORAGE == "stochastic bfloat16":
        random = random_bits(draw, stream, at, lane, IN_EIGHTHS)
        store_row_of(own, index, size, VECTOR, stochastic_bfloat16(value, random))
    elif STORAGE == "stochastic float16":
        random = random_bits(draw, stream, at, lane, IN_EIGHTHS)
        store_row_of(own, index, size, VECTOR, stochastic_float16(value, random))
    elif STORAGE == "split bfloat16":
        upper, remainder = split(value)
        store_row_of(own, index, size, VECTOR, upper)
        store_row_of(beside, index, size, VECTOR, remainder)
    elif STORAGE == "master bfloat16":
        store_row_of(own, index, size, VECTOR, value.to(tl.bfloat16))
        store_row_of(beside, index, size, VECTOR, value)
    elif STORAGE == "master float16":
        store_row_of(own, index, size, VECTOR, value.to(tl.float16))
        store_row_of(beside, index, size, VECTOR, value)
    elif STORAGE == "signed8" or STORAGE == "unsigned8":
        BLOCK: tl.constexpr = lane.shape[0]
        random = random_bits(draw, stream, at, lane, IN_EIGHTHS)
        scaled = value if STORAGE == "signed8" else tl.sqrt_rn(value)
        magnitude = finite_magnitude(scaled)
        if not VECTOR:
            magnitude = tl.where(index < size, magnitude, 0)
        largest = tl.max(tl.reshape(magnitude, (BLOCK // GROUP, GROUP)), 1)
        scale = scale_of(largest)
        by = spread(from_bfloat16(scale), GROUP)
        if STORAGE == "signed8":
            code = to_signed8(scaled, by, random)
        else:
            code = to_unsigned8(scaled, by, random)
        store_row_of(own, index, size, VECTOR, code)
        first = tl.arange(0, BLOCK // PER_THREAD) * PER_THREAD
        scales = beside.to(tl.pointer_type(tl.uint16)) + at // GROUP + first // GROUP
        of_thread = spread(scale, GROUP // PER_THREAD)
        tl.store(scales, of_thread, mask=(first % GROUP == 0) & (at + first < size))
    else:
        store_row_of(own, index, size, VECTOR, value.to(DTYPE))
