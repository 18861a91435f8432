"""Tables as csrc/tables.h declares them: what the backends hand to C++ through ctypes."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from enum import IntFlag
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import (
    COMMON_HYPERPARAMETERS,
    COMMON_SCALARS,
    FIRST_STATE,
    GRAD,
    GROUP,
    MAX_SLOTS,
    PARAM,
    PIECE,
    PLACE_COLUMNS,
    ROWS_PER_SUM,
    SOURCE_COLUMNS,
    STEP,
    STORAGES,
    Bucket,
    Hyperparameters,
    Reduction,
    Scaling,
    Tables,
)
from spectramind_fused.multi_tensor.factoring import (
    BATCH_COLUMNS,
    LAYOUT_COLUMNS,
    MEASURE_COLUMNS,
    PIECE_COLUMNS,
    STRAIGHT,
    TILE,
    TILE_COLUMNS,
    WIDEST,
)
from spectramind_fused.multi_tensor.storages import name_of

_SIZES = (
    "tensors", "chunks", "chunk_elements", "grain", "lookahead", "ema", "zero_grads", "wide_steps",
    "first_number", "wide_numbers", "first_beside",
)  # fmt: skip
_ARRAYS = (
    "pointers", "sizes", "partial_rows", "groups", "places", "chunk_table", "hyperparameters",
    "sources", "scalars", "stored", "first_chunks", "measures",
)  # fmt: skip


class CTables(ctypes.Structure):
    """`struct Tables` of csrc/tables.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        ("partials", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("sum_rows", ctypes.c_int64),
        ("norm", ctypes.c_void_p),
        ("nonfinite", ctypes.c_void_p),
        ("grad_scale", ctypes.c_void_p),
        ("found_inf", ctypes.c_void_p),
        ("skip_nonfinite", ctypes.c_int64),
    ]


_OF_ACCESS = (
    "list_item", "list_size", "dict_next", "dict_size", "dict_item", "attribute", "call", "equal",
    "integer", "release", "describe", "is_neg", "storage", "bytes", "none",
    "false_object", "grad",
    "local_tensor", "spec", "placements", "plain", "parameter", "dtensor",
)  # fmt: skip
_OFFSETS = (
    "type_at", "local_at", "spec_at",
    "tensor_at", "keys_at", "negated", "storage_at", "data_at", "bytes_at", "deleter_at",
    "object_at", "sizes_at", "meta_at", "grad_at", "no_grad", "version_at", "count_at",
)  # fmt: skip


class HostFound(IntFlag):
    """`Found` of csrc/host/facts.h."""

    FITS = 1
    MOVED = 2
    MISSING = 4
    OTHERS = 8
    LOST = 16
    OVERLAP = 32


class HostAccess(ctypes.Structure):
    """`struct Access` of csrc/host/tensors.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _OF_ACCESS),
        *((name, ctypes.c_int64) for name in _OFFSETS),
    ]


class HostGiven(ctypes.Structure):
    """`struct Given` of csrc/host/facts.h."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("groups", "state", "grads", "states", "names", "splits", "rows", "needed")
    ]


class CFactoring(ctypes.Structure):
    """`struct Factoring` of csrc/tables.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tiles", "pieces", "batches", "vector_stored")),
        *(
            (name, ctypes.c_void_p)
            for name in ("layouts", "tile_table", "piece_table", "batch_table")
        ),
    ]


class Rule(NamedTuple):
    """What a library says of a rule with a number of states.

    Attributes:
        hyperparameters: columns of its own in that table.
        scalars: likewise.
        numbers: how many it keeps of a tensor.
    """

    hyperparameters: int
    scalars: int
    numbers: int


class NativeTables(Tables):
    """Tables with their C views, and the kernels that serve them.

    Attributes:
        kernels: what the library's `spectramind_find` returned.
        view: for `advance` and `update`.
        norm_view: for `norm`; its chunks are the pieces.
        factoring_view: of factored tensors.
    """

    def __init__(
        self,
        bucket: Bucket,
        chunk_elements: int,
        rule: Rule,
        kernels: int,
        min_elements_per_thread: int = 1,
    ) -> None:
        slots = FIRST_STATE + bucket.states + bucket.lookahead + bucket.ema
        if not len(bucket.slots) == len(bucket.storages) == slots <= MAX_SLOTS:
            raise ValueError(
                f"The kernels of {bucket.rule!r} read {slots} slots, at most {MAX_SLOTS}, and were "
                f"given {len(bucket.slots)} with {len(bucket.storages)} storages."
            )
        if len(bucket.numbers) != rule.numbers:
            raise ValueError(
                f"The kernels of {bucket.rule!r} keep {rule.numbers} numbers of a tensor and were "
                f"given {len(bucket.numbers)}."
            )
        super().__init__(
            bucket,
            chunk_elements,
            COMMON_HYPERPARAMETERS + rule.hyperparameters,
            COMMON_SCALARS + rule.scalars,
        )
        self.kernels = ctypes.c_void_p(kernels)
        self._min_elements_per_thread = min_elements_per_thread
        codes = (STORAGES[storage] for storage in bucket.storages)
        self._stored = (ctypes.c_int32 * len(bucket.slots))(*codes)
        self._chunk_elements = chunk_elements

    def place(self, arrays: list[Tensor], read: Hyperparameters) -> None:
        """As in Tables; the views point there."""
        super().place(arrays, read)
        self.view = self._view(self.chunks, self._chunk_elements)
        self.norm_view = self._view(self.pieces, PIECE)
        if self.factoring is not None:
            self.factoring_view = CFactoring(
                tiles=len(self.factoring.tiles),
                pieces=len(self.factoring.pieces),
                batches=len(self.factoring.batches),
                vector_stored=STORAGES[self.factoring.dtype],
                layouts=self.factoring.layouts.data_ptr(),
                tile_table=self.factoring.tiles.data_ptr(),
                piece_table=self.factoring.pieces.data_ptr(),
                batch_table=self.factoring.batches.data_ptr(),
            )

    def _view(self, chunks: Tensor, elements: int) -> CTables:
        return CTables(
            tensors=self.tensors,
            chunks=len(chunks),
            chunk_elements=elements,
            grain=max(1, self._min_elements_per_thread * len(chunks) // max(1, self.elements)),
            lookahead=self.lookahead,
            ema=self.ema,
            zero_grads=self.zero_grads,
            wide_steps=self.storages[STEP] == torch.float64,
            first_number=self.first_number,
            wide_numbers=self.number_dtype == torch.float64,
            first_beside=self.first_beside,
            pointers=self.pointers.data_ptr(),
            sizes=self.sizes.data_ptr(),
            partial_rows=self.partial_rows.data_ptr(),
            groups=self.groups.data_ptr(),
            places=self.places.data_ptr(),
            chunk_table=chunks.data_ptr(),
            hyperparameters=self.hyperparameters.data_ptr(),
            sources=self.sources.data_ptr(),
            scalars=self.scalars.data_ptr(),
            stored=ctypes.addressof(self._stored),
            first_chunks=_address(self.measuring.first_chunks) if self.measuring else None,
            measures=_address(self.measuring.sums) if self.measuring else None,
        )

    def view_for_norm(self, reduction: Reduction) -> CTables:
        """What `norm` is given: where the partial sums go."""
        self.norm_view.partials = reduction.partials.data_ptr()
        return self.norm_view

    def view_for_squares(self, reduction: Reduction) -> CTables:
        """What `squares` is given: as `view_for_norm`."""
        self.view.partials = reduction.partials.data_ptr()
        return self.view

    def view_for_advance(self, reduction: Reduction, reduced: bool, scaling: Scaling) -> CTables:
        """What `advance` is given: the sums over all, and what a GradScaler asks for."""
        view = self.view
        view.sums = reduction.sums.data_ptr()
        view.sum_rows = reduction.sums.size(0) if reduced else 0
        view.norm = reduction.norm.data_ptr()
        view.nonfinite = reduction.nonfinite.data_ptr()
        view.grad_scale = _address(scaling.grad_scale)
        view.found_inf = _address(scaling.found_inf)
        view.skip_nonfinite = scaling.skip_nonfinite
        return view


def expected_description() -> list[str]:
    """What a library of this version says of itself (csrc/describe.h), its rules aside."""
    names = (field[0] for field in CTables._fields_)
    fields = [f"field {name} {getattr(CTables, name).offset}" for name in names]
    storages = [f"{name_of(storage)} {code}" for storage, code in STORAGES.items()]
    return [
        *fields,
        f"size {ctypes.sizeof(CTables)}",
        *storages,
        f"slot param {PARAM}",
        f"slot grad {GRAD}",
        f"slot step {STEP}",
        f"slot first_state {FIRST_STATE}",
        f"max_slots {MAX_SLOTS}",
        f"piece {PIECE}",
        f"group {GROUP}",
        f"rows_per_sum {ROWS_PER_SUM}",
        f"common_hyperparameters {COMMON_HYPERPARAMETERS}",
        f"common_scalars {COMMON_SCALARS}",
        f"source_columns {SOURCE_COLUMNS}",
        f"place_columns {PLACE_COLUMNS}",
        f"layout_columns {LAYOUT_COLUMNS}",
        f"tile_columns {TILE_COLUMNS}",
        f"piece_columns {PIECE_COLUMNS}",
        f"batch_columns {BATCH_COLUMNS}",
        f"measure_columns {MEASURE_COLUMNS}",
        f"tile {TILE}",
        f"widest {WIDEST}",
        f"straight {STRAIGHT}",
        *(
            f"factoring {field[0]} {getattr(CFactoring, field[0]).offset}"
            for field in CFactoring._fields_
        ),
    ]


def host_description() -> list[str]:
    """What the library of the CPU says of csrc/host."""
    return [
        f"host access {ctypes.sizeof(HostAccess)}",
        f"host given {ctypes.sizeof(HostGiven)}",
        f"host found {2 ** len(HostFound) - 1}",
    ]


@functools.cache
def rules_of(library: ctypes.CDLL) -> dict[tuple[str, int], Rule]:
    """What a library says of every rule that it has, by name and number of states."""
    pattern = r"rule (\w+) states (\d+) hyperparameters (\d+) scalars (\d+) numbers (\d+)"
    found = (re.fullmatch(pattern, line) for line in _description(library))
    return {(m[1], int(m[2])): Rule(*map(int, m.groups()[2:])) for m in found if m}


def has_rule(library: ctypes.CDLL, name: str) -> bool:
    """Whether a library has a rule, with whatever number of states."""
    return any(name == known for known, _ in rules_of(library))


def rule_of(library: ctypes.CDLL, name: str, states: int) -> Rule:
    """What a library says of one.

    Raises:
        NotImplementedError: it has no such rule, or not with so many states.
    """
    rule = rules_of(library).get((name, states))
    if rule is None:
        raise NotImplementedError(
            f"The kernels have no rule {name!r} with {states} states: add it to "
            "csrc/update_rules.h and to kernels/triton/rules.py, and reinstall spectramind_fused."
        )
    return rule


def _description(library: ctypes.CDLL) -> list[str]:
    describe = getattr(library, "spectramind_describe", None)
    if describe is None:
        return []
    describe.restype = ctypes.c_char_p
    text: bytes = describe()
    return text.decode().splitlines()


def loaded(
    path: Path, what: str, more: Sequence[str] = ()
) -> tuple[ctypes.CDLL | None, str | None]:
    """A library of csrc/, or why it cannot be used.

    Args:
        path: where it is.
        what: its kernels, for messages.
        more: lines that it says of itself, beside those of every library.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"the {what} kernels do not load ({error}); reinstall spectramind_fused"
    says = [line for line in _description(library) if not line.startswith("rule ")]
    wanted = {*expected_description(), *more}
    differences = sorted(wanted.symmetric_difference(says))
    if differences:
        return None, (
            f"the {what} kernels were built by another version of spectramind_fused "
            f"({len(differences)} differences, such as {differences[0]!r}); "
            "reinstall spectramind_fused"
        )
    return library, None


def required(loaded: tuple[ctypes.CDLL | None, str | None]) -> ctypes.CDLL:
    """A library that must be there.

    Raises:
        RuntimeError: it is not; with the reason that came in its place.
    """
    library, problem = loaded
    if library is None:
        raise RuntimeError(problem)
    return library


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
