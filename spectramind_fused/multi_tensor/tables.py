"""Pointers, chunks, hyperparameters and scalars: what a kernel is launched with.

`csrc/tables.h` and `kernels/triton/walk.py` read these arrays in this layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import runtime
from spectramind_fused.multi_tensor.factoring import Factoring, Measuring
from spectramind_fused.multi_tensor.layout import PLAIN, has_memory
from spectramind_fused.multi_tensor.storages import (
    PIECE,
    STORAGES,
    AnyStorage,
    computed_as,
)
from spectramind_fused.multi_tensor.upload import Uploaded, UploadedInGraphs, copied, on_host

# Rows of the pointer table (`Slot` in csrc/tables.h). The rule's states begin at FIRST_STATE; slow
# weights and averaged weights follow, and behind all slots what the rule keeps of a tensor.
PARAM, GRAD, STEP, FIRST_STATE = range(4)
MAX_SLOTS = 8

# Columns that come before a rule's own (csrc/tables.h).
COMMON_HYPERPARAMETERS = 5  # maximize, max norm, lookahead k, lookahead alpha, EMA decay
COMMON_SCALARS = 5  # grad factor, skip, sync, sync alpha, EMA weight
SOURCE_COLUMNS = 2  # of each hyperparameter: address, dtype
PLACE_COLUMNS = 5  # number of the parameter, offset, run, stride; seed

# As many steps as a kernel tells apart (`beta_exponent` in csrc/walk.h).
MOST_STEPS = 2147483520

# Of a hyperparameter: the precision of what the parameters of a bucket are computed as.
PRECISION = object()

# The address of an empty gradient, where 0 means that there is none.
NOWHERE = 1

# Of more partial sums than these a GPU makes one of so many first.
MOST_SUMS, ROWS_PER_SUM = 4096, 1024


@dataclass(frozen=True)
class Bucket:
    """Tensors that one launch serves: one device, one rule, one dtype per slot.

    Attributes:
        rule: name of the update rule, as the kernels know it.
        states: how many states the rule holds.
        lookahead: whether there is a slot of slow weights.
        ema: whether the last slot holds averaged weights.
        zero_grads: whether the update leaves zeros in the gradients.
        slots: for each slot its tensors, one per parameter; all of a parameter's
            tensors share its strides.
        storages: one per slot.
        numbers: what the rule keeps of a tensor beside its states: for each of them its 0-dim
            tensors, one per parameter.
        number_dtype: of all of them: float32 or float64.
        measured: whether the length of a step depends on a pass over everything that it reads.
        factoring: where the first state is a product of two vectors, what is known of them.
        groups: for each parameter the row of its group in the hyperparameter table.
        partial_rows: for each parameter its first row of partial sums.
        beside: what storages keep beside a slot's own row: for each row its tensors, one per
            parameter; in the order of the slots.
        places: for each parameter its number in the optimizer, where its elements are in the whole
            (offset, run and stride), and the seed: whose random bits it draws.
        in_eighths: whether every eight elements from the first on are eight of the whole, which
            share a call of the generator.
    """

    rule: str
    states: int
    lookahead: bool
    ema: bool
    zero_grads: bool
    slots: tuple[list[Tensor], ...]
    storages: tuple[AnyStorage, ...]
    groups: list[int]
    partial_rows: list[int]
    places: Sequence[tuple[int, ...]]
    beside: tuple[list[Tensor], ...] = ()
    in_eighths: bool = True
    numbers: tuple[list[Tensor], ...] = ()
    number_dtype: torch.dtype = torch.float32
    measured: bool = False
    factoring: Factoring | None = None

    @property
    def device(self) -> torch.device:
        """The one device all tensors are on."""
        return self.slots[PARAM][0].device


class Hyperparameters(NamedTuple):
    """The hyperparameters of all groups, as they were given and as a kernel reads them.

    Attributes:
        rows: one for each group.
        held: the tensors among them.
        values: the numbers among them; 0 in the place of a tensor.
        sources: for each the address of its tensor, or 0, and the tensor's dtype.
    """

    rows: Sequence[Sequence[Any]]
    held: list[Tensor]
    values: list[list[float]]
    sources: list[list[tuple[int, int]]]


class Tables:
    """The arrays of one bucket, on its device.

    Attributes:
        rule, states, lookahead, ema, zero_grads, device: as in the bucket.
        storages, number_dtype, in_eighths: likewise.
        tensors: how many parameters it has.
        first_number: the row of the first of the rule's numbers.
        first_beside: the row of the first beside a slot.
        pointers: int64 [slots + numbers + beside, tensors], addresses; that of the gradient is 0
            where a parameter takes no part in the step.
        sizes: int64 [tensors], elements.
        partial_rows: int64 [tensors], the first row of partial sums.
        groups: int32 [tensors], row of the hyperparameter table.
        places: int64 [tensors, PLACE_COLUMNS], as in the bucket.
        chunks: int64 [chunks, 2], tensor and first element of each piece of work.
        pieces: int64 [pieces, 2], likewise for the norm: of `PIECE` elements. The same table
            where the chunks are of as many.
        hyperparameters: float64 [groups, columns].
        sources: int64 [groups, columns, 2]: the address of a tensor on the device that holds
            the value, or 0, and its dtype as a number (`Dtype` in csrc/tables.h).
        holds_tensors: whether there is any such source.
        scalars: [tensors, columns], float32 (float64 for float64 parameters),
            written by the kernels' `advance`.
        uploads_gradients: whether the kernels of a GPU read the addresses of gradients there.
    """

    uploads_gradients = True
    _gradients: UploadedInGraphs | None

    def __init__(
        self, bucket: Bucket, chunk_elements: int, hyperparameter_columns: int, scalar_columns: int
    ) -> None:
        """Makes the arrays on the host; `place_all` then puts those of a plan on their devices."""
        # Of the bucket only the description stays: its gradients must be free to go.
        self.rule, self.states = bucket.rule, bucket.states
        self.lookahead, self.ema, self.zero_grads = bucket.lookahead, bucket.ema, bucket.zero_grads
        self.device, self.storages = bucket.device, bucket.storages
        self.in_eighths, self.number_dtype = bucket.in_eighths, bucket.number_dtype
        self.factoring, self._measured = bucket.factoring, bucket.measured
        self.measuring: Measuring | None = None
        self._epsilon = torch.finfo(computed_as(bucket.storages[PARAM])).eps
        self._chunk_size = chunk_elements
        self.first_number = len(bucket.slots)
        self.first_beside = self.first_number + len(bucket.numbers)
        self.tensors = len(bucket.groups)
        sizes = self._sizes = on_host([p.numel() for p in bucket.slots[PARAM]])
        self.elements = int(sizes.sum())
        rows = (*bucket.slots, *bucket.numbers, *bucket.beside)
        addresses = [[tensor.data_ptr() for tensor in row] for row in rows]
        addresses[GRAD] = list(map(_address_of_gradient, bucket.slots[GRAD]))
        self.arrays = [
            on_host(addresses),
            sizes,
            on_host(bucket.partial_rows),
            on_host(bucket.groups, torch.int32),
            on_host(list(bucket.places)).view(-1, PLACE_COLUMNS),
            _chunks(sizes, chunk_elements),
            *([] if chunk_elements == PIECE else [_chunks(sizes, PIECE)]),
        ]
        self._columns, self._scalar_columns = hyperparameter_columns, scalar_columns
        self._rows: Sequence[Sequence[Any]] | None = None
        self._held: list[Tensor] = []  # tensors whose addresses are in `sources`

    def place(self, arrays: list[Tensor], read: Hyperparameters) -> None:
        """Takes everything as it is on the device, and makes what lies only there.

        Args:
            arrays: as they were on the host, behind them the hyperparameters and their sources.
            read: what was read of the hyperparameters.
        """
        of_gradients = self.arrays[0][GRAD]
        self.pointers, self.sizes, self.partial_rows, self.groups, self.places = arrays[:5]
        self.chunks = arrays[5]
        *self.arrays, hyperparameters, held = arrays
        self.pieces = self.arrays[-1]  # the chunks again, where they are of one size
        wide = self.storages[PARAM] == torch.float64
        self.scalars = torch.empty(
            self.tensors,
            self._scalar_columns,
            dtype=torch.float64 if wide else torch.float32,
            device=self.device,
        )
        if self._measured:
            self.measuring = Measuring(self._sizes, self._chunk_size, self.device)
        self._row, self._gradients = self.pointers[GRAD], None
        is_on_host = self.device.type == "cpu" and not runtime.current.serves(self.device)
        if self.uploads_gradients and not is_on_host:
            self._addresses = of_gradients.tolist()
            self._gradients = UploadedInGraphs(self._row, self._addresses)
            self._row = of_gradients.clone()
        self._values = Uploaded(hyperparameters, read.values)
        self._sources = Uploaded(held, read.sources)
        self._remember(read)

    def on_device(self) -> list[Tensor]:
        """Everything here that a kernel reads or writes."""
        more = [own.on_device() for own in (self.factoring, self.measuring) if own is not None]
        rows = [self.scalars, self.hyperparameters, self.sources]
        return [*self.arrays, *rows, *chain.from_iterable(more)]

    @property
    def hyperparameters(self) -> Tensor:
        """The values; where a source is given they do not count."""
        return self._values.tensor

    @property
    def sources(self) -> Tensor:
        """The tensors that hold a value."""
        return self._sources.tensor

    def row_of_gradient(self, index: int) -> int:
        """Where, on the host, the address of a gradient is expected: an int64."""
        return self._row.data_ptr() + 8 * index

    def set_gradient(self, index: int, address: int) -> bool:
        """Writes the address of one gradient there; returns whether it is another one."""
        moved = int(self._row[index]) != address
        self._row[index] = address
        return moved

    def set_gradients(self, addresses: list[int]) -> None:
        """Points the gradient row at this step's gradients."""
        self._row.copy_(on_host(addresses))
        self.follow_gradients(moved=True)

    def follow_gradients(self, moved: bool) -> None:
        """Gives the kernels the addresses that are expected now.

        Args:
            moved: whether one of them may have changed.
        """
        if self._gradients is not None:
            if moved:
                self._addresses = self._row.tolist()
            self._gradients.set(self._addresses)

    def set_hyperparameters(self, rows: Sequence[Sequence[Any]]) -> None:
        """Refreshes the hyperparameter table, one row per parameter group, if any changed.

        A tensor on this device is not read: the kernels will, at every step.

        Raises:
            ValueError: a row has not the columns that the kernels read, or a value is not one
                number.
            RuntimeError: a value changed, and a CUDA graph is being captured: the upload would
                be repeated by every replay.
        """
        read = self.read_hyperparameters(rows)
        if read is not None:
            self._values.set(read.values)
            self._sources.set(read.sources)
            self._remember(read)

    def _remember(self, read: Hyperparameters) -> None:
        self._held, self.holds_tensors = read.held, bool(read.held)
        self._rows = None if read.held else read.rows

    def read_hyperparameters(self, rows: Sequence[Sequence[Any]]) -> Hyperparameters | None:
        """What some rows hold; None where all are numbers, and those that are known.

        Raises:
            ValueError: as in `set_hyperparameters`.
        """
        held: list[Tensor] = []
        if not _NUMBERS.issuperset(map(type, chain.from_iterable(rows))):
            rows = [[self._epsilon if v is PRECISION else v for v in row] for row in rows]
            rows = [[_number(value, self.device) for value in row] for row in rows]
            held = [value for row in rows for value in row if isinstance(value, Tensor)]
        # Tensors must not be compared, for that reads them.
        if not held and rows == self._rows:
            return None
        for row in rows:
            if len(row) != self._columns:
                raise ValueError(
                    f"The rule {self.rule!r} reads {self._columns} hyperparameters and was given "
                    f"{len(row)}: `algorithm` of its class does not match the kernels. After an "
                    "update, reinstall spectramind_fused."
                )
        values = [[0.0 if isinstance(v, Tensor) else float(v) for v in row] for row in rows]
        return Hyperparameters(rows, held, values, [list(map(_source, row)) for row in rows])


def place_all(tables: Sequence[Tables], rows: Sequence[Sequence[Sequence[Any]]]) -> None:
    """Puts the tables of a plan on their devices: one copy for each, for which nobody waits.

    Args:
        tables: those of every bucket.
        rows: of each of them its hyperparameters.

    Raises:
        ValueError: as in `set_hyperparameters`.
    """
    read = [of_one.read_hyperparameters(own) for of_one, own in zip(tables, rows, strict=True)]
    for device in dict.fromkeys(of_one.device for of_one in tables):
        pairs = zip(tables, read, strict=True)
        here = [(of_one, own) for of_one, own in pairs if own and of_one.device == device]
        arrays = []
        for of_one, own in here:
            arrays += [*of_one.arrays, on_host(own.values, torch.float64), on_host(own.sources)]
        there = iter(copied(arrays, device))
        for of_one, own in here:
            of_one.place([next(there) for _ in range(len(of_one.arrays) + 2)], own)


class Reduction:
    """What the norm pass of one device writes, and what `advance` makes of it.

    Attributes:
        partials: float64 [rows, 2]: sum of squares and number of gradients that are not finite,
            for every piece of every parameter of the optimizer, in their order: so the last bits
            of the norm do not depend on who has taken part before.
        elsewhere: float64 [1, 2]: the sums over all devices and ranks, where there are several.
        room: float64, for sums of `ROWS_PER_SUM` partial ones, as a GPU takes where they are many.
        many: whether a GPU sums the partial sums in two stages.
        sums: what `advance` adds up: one of these three.
        norm: float64 [], of the unscaled gradients.
        nonfinite: float32 [], 1 if any gradient is not finite.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.partials = torch.zeros(rows, 2, dtype=torch.float64, device=device)
        self.elsewhere = torch.zeros(1, 2, dtype=torch.float64, device=device)
        self.room = torch.empty(-(-rows // ROWS_PER_SUM), 2, dtype=torch.float64, device=device)
        self.many = rows > MOST_SUMS
        self.sums = self.partials
        self.norm = torch.zeros((), dtype=torch.float64, device=device)
        self.nonfinite = torch.zeros((), dtype=torch.float32, device=device)

    def on_device(self) -> list[Tensor]:
        """Everything here that a kernel reads or writes."""
        return [self.partials, self.elsewhere, self.room, self.norm, self.nonfinite]


class Scaling(NamedTuple):
    """What a GradScaler asks of a step.

    Attributes:
        grad_scale: float32, a factor that the gradients carry; None for none.
        found_inf: float32, not 0 where the step is to be skipped; None for never.
        skip_nonfinite: whether a gradient that is not finite makes the step skipped. Then the
            norm pass must have run.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    skip_nonfinite: bool = False

    def on(self, device: torch.device) -> Scaling:
        """The same with its tensors on `device`; no host synchronisation."""
        return self._replace(
            grad_scale=_moved(self.grad_scale, device), found_inf=_moved(self.found_inf, device)
        )


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    if tensor is None or tensor.device == device:
        return tensor
    return tensor.to(device, non_blocking=True)


_NUMBERS = {float, int, bool}


def _number(value: Any, device: torch.device) -> Any:
    """A number, or the tensor that holds it where the kernels can read it at every step.

    Raises:
        ValueError: it is not one number.
    """
    if type(value) in _NUMBERS:
        return value
    if isinstance(value, Tensor) and value.numel() == 1 and value.device == device:
        plain = type(value) in PLAIN and not value.is_neg()
        if plain and value.dtype in (torch.float32, torch.float64) and has_memory(value):
            return value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"A hyperparameter is {value!r}: give one number.") from error


def _source(value: Any) -> tuple[int, int]:
    """The address of a tensor and its dtype; 0 for a number."""
    if not isinstance(value, Tensor):
        return 0, 0
    return value.data_ptr(), STORAGES[value.dtype]


def _address_of_gradient(grad: Tensor) -> int:
    """0 is the address of none, so an empty one has another."""
    return grad.data_ptr() if grad.numel() else NOWHERE


def _chunks(sizes: Tensor, elements: int) -> Tensor:
    """int64 [chunks, 2]: every tensor cut into pieces of at most `elements`."""
    counts = (sizes + elements - 1) // elements
    tensor = torch.repeat_interleave(counts)  # how often each index occurs
    before = torch.cumsum(counts, 0) - counts
    piece = torch.ones_like(tensor).cumsum(0) - 1 - before[tensor]
    return torch.stack([tensor, piece * elements], dim=1)
