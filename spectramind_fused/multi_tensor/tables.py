"""Pointers, chunks, hyperparameters and scalars: what a kernel is launched with.

`csrc/tables.h` and `kernels/triton/walk.py` read these arrays in this layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The first rows of the pointer table; step counters, the rule's states and slow weights follow.
PARAM, GRAD = range(2)


@dataclass(frozen=True)
class Bucket:
    """Tensors that one launch serves: one device, one rule, one dtype per slot.

    Attributes:
        rule: name of the update rule, as the kernels know it.
        states: how many states the rule holds.
        lookahead: whether the last slot holds slow weights.
        slots: for each slot its tensors, one per parameter; all of a parameter's
            tensors share its strides.
        groups: for each parameter the row of its group in the hyperparameter table.
    """

    rule: str
    states: int
    lookahead: bool
    slots: tuple[list[Tensor], ...]
    groups: list[int]

    @property
    def device(self) -> torch.device:
        """The one device all tensors are on."""
        return self.slots[PARAM][0].device

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """One dtype per slot."""
        return tuple(slot[0].dtype for slot in self.slots)


class Tables:
    """The arrays of one bucket, on its device.

    Attributes:
        rule, states, lookahead, device, dtypes: as in the bucket.
        tensors: how many parameters it has.
        pointers: int64 [slots, tensors], addresses.
        sizes: int64 [tensors], elements.
        groups: int32 [tensors], row of the hyperparameter table.
        chunks: int64 [chunks, 2], tensor and first element of each piece of work.
        hyperparameters: float64 [groups, columns].
        scalars: [tensors, columns], float32 (float64 for float64 parameters),
            written by the kernels' `advance`.
    """

    def __init__(self, bucket: Bucket, chunk_elements: int, scalar_columns: int) -> None:
        # Of the bucket only the description stays: its gradients must be free to go.
        self.rule, self.states, self.lookahead = bucket.rule, bucket.states, bucket.lookahead
        self.device, self.dtypes = bucket.device, bucket.dtypes
        self.tensors = len(bucket.groups)
        device = self.device
        params = bucket.slots[PARAM]
        sizes = _on_host([p.numel() for p in params])
        self._gradients = [g.data_ptr() for g in bucket.slots[GRAD]]
        self._rows: list[tuple[float, ...]] = []
        self.elements = int(sizes.sum())
        addresses = [[tensor.data_ptr() for tensor in slot] for slot in bucket.slots]
        self.pointers = _on_host(addresses).to(device)
        self.sizes = sizes.to(device)
        self.groups = _on_host(bucket.groups, torch.int32).to(device)
        self.chunks = _chunks(sizes, chunk_elements).to(device)
        self.hyperparameters = torch.empty(0, dtype=torch.float64, device=device)
        compute = torch.float64 if self.dtypes[PARAM] == torch.float64 else torch.float32
        self.scalars = torch.empty(len(params), scalar_columns, dtype=compute, device=device)

    def set_gradients(self, addresses: list[int]) -> None:
        """Points the gradient row at this step's gradients, if any of them moved."""
        if addresses != self._gradients:
            self._gradients = addresses
            _upload(_on_host(addresses), self.pointers[GRAD])

    def set_hyperparameters(self, rows: list[tuple[float, ...]]) -> None:
        """Refreshes the hyperparameter table, one row per parameter group, if any changed."""
        if rows == self._rows:
            return
        self._rows = rows
        values = _on_host(rows, torch.float64)
        if self.hyperparameters.shape != values.shape:
            self.hyperparameters = torch.empty_like(values, device=self.device)
        _upload(values, self.hyperparameters)


def _chunks(sizes: Tensor, elements: int) -> Tensor:
    """int64 [chunks, 2]: every tensor cut into pieces of at most `elements`."""
    counts = (sizes + elements - 1) // elements
    tensor = torch.repeat_interleave(counts)  # how often each index occurs
    before = torch.cumsum(counts, 0) - counts
    piece = torch.ones_like(tensor).cumsum(0) - 1 - before[tensor]
    return torch.stack([tensor, piece * elements], dim=1)


def _on_host(values: list[Any], dtype: torch.dtype = torch.int64) -> Tensor:
    """A CPU tensor, whatever the default device is."""
    return torch.tensor(values, dtype=dtype, device="cpu")


def _upload(values: Tensor, into: Tensor) -> None:
    # Pinned memory lets the copy overlap; torch keeps it alive until it has been read.
    if into.device.type == "cuda":
        values = values.pin_memory()
    into.copy_(values, non_blocking=True)
