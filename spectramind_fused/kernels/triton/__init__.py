"""The `triton` backend: GPUs, and CPU tensors under TRITON_INTERPRET=1.

Nothing of Triton is imported before a tensor asks for it, so the package works without it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.kernels.float64 import float64_is_slow
from spectramind_fused.kernels.place import on, stream
from spectramind_fused.kernels.triton.launch import Call, Launches
from spectramind_fused.multi_tensor import (
    COMMON_HYPERPARAMETERS,
    COMMON_SCALARS,
    FIRST_STATE,
    GRAD,
    PIECE,
    ROWS_PER_SUM,
    STEP,
    Bucket,
    Reduction,
    Scaling,
    Tables,
)
from spectramind_fused.multi_tensor.factoring import WIDEST
from spectramind_fused.multi_tensor.storages import (
    SIGNED8,
    SPLIT,
    STOCHASTIC,
    UNSIGNED8,
    AnyStorage,
    Storage,
    beside_of,
    dtype_of,
    is_random,
    name_of,
)

_OLDEST = (3, 6)  # comes with torch 2.10; 3.4 and 3.5 take roots of denormals for 0
CHUNK = 8192
BLOCK = 1024  # 8 elements per thread of 4 warps: 128-bit accesses down to 16-bit dtypes
# Per thread of `update`, by the number of states. Left to itself ptxas spills in some variants, to
# fit more blocks than a kernel that is bound by memory has a use for. With 80, 24 warps of 64 run
# beside each other: on an H100 the whole tail in bfloat16 takes 5 % less time than with 96, and 1 %
# more than with 72 (2026-11-26), in which not every rule fits. A third state needs 96.
_REGISTERS = {0: 80, 1: 80, 2: 80, 3: 96}
# With random bits or a master 96 do; with 8 bits, or random bits beside a split parameter, 128. A
# third state, or random bits of float16, get as many as a multiprocessor has for three blocks.
_REGISTERS_OF_STORAGE, _REGISTERS_OF_HEAVY, _REGISTERS_OF_HEAVIEST = 96, 128, 168
_TENSORS_PER_PROGRAM = 128  # of `advance`
_ROWS_AT_ONCE = 1024  # of sums, in `advance`
_ROWS_OF_NORM = 128  # of 8 elements: one for each thread of 4 warps
_BYTES_IN_FLIGHT = 64  # of a thread in `norm`
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_CODES = {torch.int8: "int8", torch.uint8: "uint8"}


class _TritonTables(Tables):
    """Tables, and what has been launched on them.

    Attributes:
        has_pieces: whether there is any element.
    """

    def place(self, *args: Any) -> None:
        """As in Tables."""
        super().place(*args)
        self.has_pieces = len(self.pieces) > 0
        self._launches = Launches()

    def launch(self, key: Hashable, call: Callable[[], Call]) -> None:
        """As in `Launches`, on the device of the tables."""
        with on(self.device):
            self._launches(key, call, stream(self.device))


class TritonBackend:
    """Triton kernels: float32, bfloat16 and float16 parameters."""

    name = "triton"

    def unavailable(self, device: torch.device) -> str | None:
        """Why Triton cannot run on `device`, or None."""
        try:
            import triton
        except ImportError as error:
            return f"triton does not import ({error}); `pip install triton` on Linux"
        if tuple(map(int, re.findall(r"\d+", triton.__version__)[:2])) < _OLDEST:
            return f"Triton {triton.__version__} is older than 3.6; `pip install -U triton`"
        if triton.knobs.runtime.interpret:
            return None if device.type == "cpu" else "Triton's interpreter serves CPU tensors only"
        try:
            active = triton.runtime.driver.active.get_active_torch_device()
        except Exception as error:  # Triton raises what its drivers raise
            return f"Triton finds no GPU it supports here ({error})"
        if device.type != active.type:
            return f"Triton's active driver serves {active.type} tensors, not {device.type}"
        return None

    def prefers(self, device: torch.device) -> bool:
        """On GPUs: on a CPU Triton is only interpreted."""
        return device.type != "cpu"

    def has_rule(self, rule: str) -> bool:
        """Whether there are functions for the rule."""
        return rule in _rules()

    def unsupported(self, dtype: torch.dtype) -> str | None:
        """Why a dtype cannot be served, or None."""
        return None if dtype in _DTYPES else f"the triton backend has no {dtype}"

    def tables(self, bucket: Bucket) -> Tables:
        """Builds the tables of a bucket."""
        rule = _rules().get(bucket.rule)
        if rule is None or bucket.states not in rule.states:
            raise NotImplementedError(
                f"Triton has no rule {bucket.rule!r} with {bucket.states} states: add it to RULES "
                "in kernels/triton/rules.py."
            )
        assert len(bucket.slots) == FIRST_STATE + bucket.states + bucket.lookahead + bucket.ema
        assert len(bucket.numbers) == rule.numbers
        return _TritonTables(
            bucket,
            CHUNK,
            COMMON_HYPERPARAMETERS + rule.hyperparameters,
            COMMON_SCALARS + rule.scalars,
        )

    def bad_counter(self, tables: Tables) -> int | None:
        """Not looked for: it would wait for the GPU."""
        return None

    def norm(self, tables: Tables, reduction: Reduction) -> None:
        """Sums the squares of every piece."""
        assert isinstance(tables, _TritonTables)
        if not tables.has_pieces:
            return

        def call() -> Call:
            from spectramind_fused.kernels.triton import norm

            return Call(
                norm.norm,
                len(tables.pieces),
                [
                    tables.pointers,
                    tables.sizes,
                    tables.pieces,
                    reduction.partials,
                    tables.partial_rows,
                    tables.tensors,
                ],
                norm_constants(dtype_of(tables.storages[GRAD]), float64_is_slow(tables.device)),
            )

        tables.launch(("norm", reduction.partials.data_ptr()), call)

    def sums(self, reduction: Reduction) -> Tensor:
        """The partial sums, or sums of them: then one launch."""
        if not reduction.many:
            return reduction.partials
        from spectramind_fused.kernels.triton import norm

        rows, sums = len(reduction.partials), reduction.room
        with on(sums.device):
            norm.reduce[(len(sums),)](reduction.partials, rows, sums, **reduce_constants())
        return sums

    def advance(
        self, tables: Tables, reduction: Reduction, reduced: bool, scaling: Scaling
    ) -> None:
        """Counts the step and derives the scalars."""
        assert isinstance(tables, _TritonTables)
        scale, found_inf, skip = scaling

        def call() -> Call:
            from spectramind_fused.kernels.triton import walk

            return Call(
                walk.advance,
                -(-tables.tensors // _TENSORS_PER_PROGRAM),
                [
                    tables.pointers,
                    tables.groups,
                    tables.hyperparameters,
                    tables.sources,
                    tables.scalars,
                    tables.tensors,
                    tables.first_number,
                    reduction.sums,
                    len(reduction.sums),
                    reduction.norm,
                    reduction.nonfinite,
                    reduction.nonfinite if scale is None else scale,  # None would be another type
                    reduction.nonfinite if found_inf is None else found_inf,
                ],
                advance_constants(
                    tables.rule,
                    dtype_of(tables.storages[STEP]),
                    tables.number_dtype,
                    held=tables.holds_tensors,
                    reduced=reduced,
                    scaled=scale is not None,
                    found_inf=found_inf is not None,
                    skip_nonfinite=skip,
                ),
            )

        read = (reduction.sums, scale, found_inf)
        at = (0 if tensor is None else tensor.data_ptr() for tensor in read)
        tables.launch(("advance", tables.holds_tensors, reduced, skip, *at), call)

    def squares(self, tables: Tables, reduction: Reduction) -> None:
        """Sums the squares of rows and columns of every tile."""
        assert isinstance(tables, _TritonTables)
        factoring = tables.factoring
        assert factoring is not None
        if not len(factoring.tiles):
            return

        def call() -> Call:
            from spectramind_fused.kernels.triton import factored

            return Call(
                factored.squares,
                len(factoring.tiles),
                [
                    tables.pointers,
                    tables.sizes,
                    factoring.tiles,
                    factoring.layouts,
                    reduction.partials,
                    tables.partial_rows,
                    tables.tensors,
                ],
                squares_constants(dtype_of(tables.storages[GRAD])),
            )

        tables.launch(("squares", reduction.partials.data_ptr()), call)

    def factor(self, tables: Tables) -> None:
        """Moves the vectors on, and makes factors of them."""
        assert isinstance(tables, _TritonTables)
        factoring = tables.factoring
        assert factoring is not None
        if not len(factoring.tiles):
            return
        of_both = [tables.scalars, tables.tensors]

        def move() -> Call:
            from spectramind_fused.kernels.triton import factored

            return Call(
                factored.move,
                len(factoring.pieces),
                [tables.pointers, tables.sizes, factoring.pieces, factoring.layouts, *of_both],
                move_constants(tables.rule, factoring.dtype),
            )

        def divide() -> Call:
            from spectramind_fused.kernels.triton import factored

            return Call(
                factored.divide,
                len(factoring.batches),
                [tables.pointers, factoring.batches, factoring.layouts, *of_both],
                divide_constants(tables.rule),
            )

        tables.launch("move", move)
        tables.launch("divide", divide)

    def measure(self, tables: Tables) -> None:
        """Reads every chunk, and scales the steps."""
        assert isinstance(tables, _TritonTables)
        measuring = tables.measuring
        assert measuring is not None
        if not tables.has_pieces:
            return
        of_both = [measuring.first_chunks, measuring.sums, tables.tensors]

        def measure() -> Call:
            from spectramind_fused.kernels.triton import factored

            return Call(
                factored.measure,
                len(tables.chunks),
                [tables.pointers, tables.sizes, tables.chunks, tables.scalars, *of_both],
                measure_constants(tables.rule, tables.storages),
            )

        def scale() -> Call:
            from spectramind_fused.kernels.triton import factored

            return Call(
                factored.scale,
                tables.tensors,
                [
                    tables.pointers,
                    tables.sizes,
                    tables.groups,
                    tables.hyperparameters,
                    tables.sources,
                    tables.scalars,
                    *of_both,
                ],
                scale_constants(tables.rule, dtype_of(tables.storages[STEP]), tables.holds_tensors),
            )

        tables.launch("measure", measure)
        tables.launch(("scale", tables.holds_tensors), scale)

    def update(self, tables: Tables) -> None:
        """Updates every chunk."""
        assert isinstance(tables, _TritonTables)
        if not tables.has_pieces:
            return

        def call() -> Call:
            from spectramind_fused.kernels.triton import walk

            return Call(
                walk.update,
                len(tables.chunks),
                [
                    tables.pointers,
                    tables.sizes,
                    tables.chunks,
                    tables.places,
                    tables.scalars,
                    tables.tensors,
                ],
                update_constants(
                    tables.rule,
                    tables.states,
                    tables.storages,
                    in_eighths=tables.in_eighths,
                    lookahead=tables.lookahead,
                    ema=tables.ema,
                    zero_grads=tables.zero_grads,
                ),
            )

        tables.launch("update", call)


def _rules() -> dict[str, Any]:
    from spectramind_fused.kernels.triton.rules import RULES

    return RULES


# The constants below decide which variant of a kernel is compiled. FP fusion is off: the
# kernels are bound by memory, and without it they round like csrc/ and like plain torch.


@functools.cache
def norm_constants(dtype: torch.dtype, pairs: bool) -> dict[str, Any]:
    """Compile-time arguments and launch options of `norm`."""
    import triton.language as tl

    return {
        "DTYPE": getattr(tl, _DTYPES[dtype]),
        "PAIRS": pairs,
        "PIECE": PIECE,
        "ROWS": _ROWS_OF_NORM,
        "BLOCKS": _BYTES_IN_FLIGHT // (8 * dtype.itemsize),
        "num_warps": 4,
        "enable_fp_fusion": False,
    }


@functools.cache
def reduce_constants() -> dict[str, Any]:
    """Compile-time arguments and launch options of `reduce`."""
    return {"ROWS_PER_SUM": ROWS_PER_SUM, "num_warps": 4, "enable_fp_fusion": False}


@functools.cache
def advance_constants(
    rule: str,
    counter: torch.dtype,
    number: torch.dtype,
    *,
    held: bool,
    reduced: bool,
    scaled: bool,
    found_inf: bool,
    skip_nonfinite: bool,
) -> dict[str, Any]:
    """Compile-time arguments and launch options of `advance`."""
    import triton.language as tl

    return {
        "RULE_SCALARS": _rules()[rule].compute_scalars,
        "RULE_HYPERPARAMETERS": _rules()[rule].hyperparameters,
        "COUNTER": tl.float64 if counter == torch.float64 else tl.float32,
        "NUMBERS": _rules()[rule].numbers,
        "NUMBER": tl.float64 if number == torch.float64 else tl.float32,
        "HELD": held,
        "REDUCED": reduced,
        "SCALED": scaled,
        "FOUND_INF": found_inf,
        "SKIP_NONFINITE": skip_nonfinite,
        "BLOCK": _TENSORS_PER_PROGRAM,
        "BLOCK_OF_ROWS": _ROWS_AT_ONCE,
        "num_warps": 4,
        "enable_fp_fusion": False,
    }


def _loaded_as(storage: AnyStorage) -> str:
    """What a slot's own row holds, to the kernels: raw bits, unless it is a plain dtype."""
    if not isinstance(storage, Storage):
        return _DTYPES[storage]
    return _CODES.get(storage.dtype, "uint16")


def _registers(rule: str, states: int, storages: tuple[AnyStorage, ...]) -> int:
    known: int = _rules()[rule].registers or _REGISTERS[states]
    if not any(isinstance(storage, Storage) for storage in storages):
        return known
    in_eight = any(storage in (SIGNED8, UNSIGNED8) for storage in storages)
    if STOCHASTIC[torch.float16] in storages:
        return _REGISTERS_OF_HEAVIEST
    if not in_eight and not (SPLIT in storages and any(map(is_random, storages))):
        return max(known, _REGISTERS_OF_STORAGE)
    return _REGISTERS_OF_HEAVIEST if states == 3 else _REGISTERS_OF_HEAVY


def _block_of(storages: tuple[AnyStorage, ...]) -> int:
    """Elements of a block: half as many where float32 meets less, or something is kept beside.

    A thread then holds four side by side, by 128 bits of float32. With eight, Triton lays float32
    out in two fours, and exchanges it with what lies in one eight through shared memory; and what
    is kept beside takes registers.
    """
    if any(map(beside_of, storages)):
        return BLOCK // 2
    sizes = {dtype_of(storage).itemsize for i, storage in enumerate(storages) if i != STEP}
    return BLOCK // 2 if 4 in sizes and len(sizes) > 1 else BLOCK


@functools.cache
def update_constants(
    rule: str,
    states: int,
    storages: tuple[AnyStorage, ...],
    *,
    lookahead: bool,
    ema: bool,
    zero_grads: bool,
    in_eighths: bool = True,
) -> dict[str, Any]:
    """Compile-time arguments and launch options of `update`."""
    # Of the counter `update` knows: a float64 where random bits are drawn. It makes no variant.
    of_slots = tuple(torch.float32 if i == STEP else s for i, s in enumerate(storages))
    random = any(map(is_random, of_slots))
    return {
        "RULE_UPDATE": _rules()[rule].update,
        **_constants_of_slots(rule, of_slots),
        "STATES": states,
        "LOOKAHEAD": lookahead,
        "EMA": ema,
        "ZERO_GRADS": zero_grads,
        "RANDOM": random,
        "IN_EIGHTHS": in_eighths or not random,
        "num_warps": 4,
        "enable_fp_fusion": False,
        # No option of AMD's compiler.
        **({} if torch.version.hip else {"maxnreg": _registers(rule, states, of_slots)}),
    }


def _constants_of_slots(rule: str, of_slots: tuple[AnyStorage, ...]) -> dict[str, Any]:
    """Compile-time arguments of those who walk chunks: what their slots are stored in."""
    import triton.language as tl

    rows = [len(beside_of(storage)) for storage in of_slots]
    return {
        "RULE_SCALARS": _rules()[rule].scalars,
        "STORAGES": tuple(map(name_of, of_slots)),
        "DTYPES": tuple(getattr(tl, _loaded_as(storage)) for storage in of_slots),
        "BESIDE": tuple(sum(rows[:i]) if rows[i] else -1 for i in range(len(rows))),
        "FIRST_BESIDE": len(of_slots) + _rules()[rule].numbers,
        "ROWS_BESIDE": sum(rows),
        "CHUNK": CHUNK,
        "BLOCK": _block_of(of_slots),
    }


@functools.cache
def squares_constants(dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time arguments and launch options of `squares`."""
    import triton.language as tl

    return {
        "DTYPE": getattr(tl, _DTYPES[dtype]),
        "ROWS": 4,
        "COLUMNS": WIDEST,
        "LANES": 512,
        "num_warps": 4,
        "enable_fp_fusion": False,
        **({} if torch.version.hip else {"maxnreg": _REGISTERS_OF_HEAVIEST}),
    }


@functools.cache
def move_constants(rule: str, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time arguments and launch options of `move`; `dtype` of the vectors."""
    import triton.language as tl

    return {
        "RULE_SCALARS": _rules()[rule].scalars,
        "DTYPE": getattr(tl, _DTYPES[dtype]),
        "BLOCK": 512,
        "num_warps": 4,
        "enable_fp_fusion": False,
    }


@functools.cache
def divide_constants(rule: str) -> dict[str, Any]:
    """Compile-time arguments and launch options of `divide`."""
    scalars = _rules()[rule].scalars
    return {
        "RULE_SCALARS": scalars,
        "FEW": 64,
        "LANES": 256,
        "num_warps": 4,
        "enable_fp_fusion": False,
    }


@functools.cache
def measure_constants(rule: str, storages: tuple[AnyStorage, ...]) -> dict[str, Any]:
    """Compile-time arguments and launch options of `measure`."""
    of_slots = tuple(torch.float32 if i == STEP else s for i, s in enumerate(storages))
    constants = _constants_of_slots(rule, of_slots)
    # It has no use for slow and averaged weights.
    for name in ("STORAGES", "DTYPES", "BESIDE"):
        constants[name] = constants[name][: FIRST_STATE + 1]
    return {
        "RULE_DIRECTION": _rules()[rule].direction,
        **constants,
        "num_warps": 4,
        "enable_fp_fusion": False,
        # Left to itself ptxas spills for an A100.
        **({} if torch.version.hip else {"maxnreg": _REGISTERS_OF_HEAVIEST}),
    }


@functools.cache
def scale_constants(rule: str, counter: torch.dtype, held: bool) -> dict[str, Any]:
    """Compile-time arguments and launch options of `scale`."""
    import triton.language as tl

    return {
        "RULE_NEG_STEP": _rules()[rule].neg_step,
        "RULE_HYPERPARAMETERS": _rules()[rule].hyperparameters,
        "RULE_SCALARS": _rules()[rule].scalars,
        "HELD": held,
        "COUNTER": tl.float64 if counter == torch.float64 else tl.float32,
        "LANES": 256,
        "num_warps": 4,
        "enable_fp_fusion": False,
    }
