"""A bucket of matrices that step by what products of whole matrices make of their momentum.

Two sets of tables: by the first, `advance` and `update` count, unscale, clip, move the momentum and
write what is to be made orthogonal, packed by shape; torch's batched products make it so where it
lies; by the second, `advance` and `update` decay, step, look ahead and average, with the result in
the place of a gradient. Bytes for a parameter of float32: 14 in the first (gradient 4, momentum 8,
2 of what is packed, in bfloat16), 10 in the second (parameter 8, packed 2).
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import NOWHERE, Reduction, Scaling, Tables
from spectramind_fused.stepping import orthogonal
from spectramind_fused.stepping.algorithm import Algorithm, Group, as_tuple
from spectramind_fused.stepping.bucket import BucketDescription, Entry, PlannedBucket
from spectramind_fused.stepping.fingerprint import Look
from spectramind_fused.stepping.inputs import StepInputs
from spectramind_fused.stepping.rows import Row, Rows
from spectramind_fused.stepping.storage import PARAM

_ALIGNED = 8  # elements: what is packed begins at a multiple of 16 bytes, for 128-bit accesses


class _Kind(NamedTuple):
    """Matrices that are packed together.

    Attributes:
        shape: of each parameter.
        stride: likewise.
        coefficients, steps, eps: of Newton-Schulz.
        splits: how many rows belong to each matrix of a parameter; None: all to one.
        adjusted: how the learning rate follows from the shape, by torch's name for it.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    coefficients: Any
    steps: int
    eps: float
    splits: tuple[int, ...] | None
    adjusted: str | None

    @classmethod
    def of(cls, param: Tensor, group: Group) -> _Kind:
        """Of a parameter of a group."""
        return cls(
            param.shape,
            param.stride(),
            as_tuple(group["ns_coefficients"]),
            group["ns_steps"],
            group["eps"],
            as_tuple(group.get("split_sizes")),
            group["adjust_lr_fn"],
        )


class _Stack:
    """What is packed of one kind.

    Attributes:
        memory: of all of it.
        positions: of its parameters in the bucket.
        members: for each of them where its values are packed.
    """

    def __init__(self, kind: _Kind, positions: list[int], dtype: torch.dtype, device: Any) -> None:
        """Zeros at first: a step that is skipped writes nothing here."""
        self._kind, self.positions = kind, positions
        size = -(-kind.shape.numel() // _ALIGNED) * _ALIGNED
        self.memory = torch.zeros(len(positions), size, dtype=dtype, device=device)
        shape, stride = (len(positions), *kind.shape), (size, *kind.stride)
        self._matrices = self.memory.as_strided(shape, stride)
        self.members = list(self._matrices.unbind())

    def orthogonalize(self) -> None:
        """Makes every matrix orthogonal where it lies."""
        if not self._matrices.numel():
            return
        kind = self._kind
        sizes: Any = kind.splits or kind.shape[-2]
        stacks = orthogonal.at_once(self._matrices)
        for part in chain.from_iterable(torch.split(stack, sizes, dim=-2) for stack in stacks):
            made = orthogonal.orthogonalized(part, kind.coefficients, kind.steps, kind.eps)
            # A parameter has one learning rate: what differs between its matrices is put here.
            ratio = learning_rate_ratio(kind.adjusted, part.shape) / ratio_of(kind)
            part.copy_(made if ratio == 1 else made * ratio)


def learning_rate_ratio(adjusted: str | None, shape: torch.Size) -> float:
    """What a matrix's learning rate is multiplied by, as torch has it."""
    rows, columns = shape[-2:]
    if adjusted == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns)) if columns else 1.0


def ratio_of(kind: _Kind) -> float:
    """That by which a parameter's learning rate is multiplied: that of its first matrix."""
    rows = kind.splits[0] if kind.splits else kind.shape[-2]
    return learning_rate_ratio(kind.adjusted, torch.Size((rows, kind.shape[-1])))


class MatrixBucket(PlannedBucket):
    """Matrices: the tables of the base class are the first ones, which read the gradients."""

    def _make_tables(self, entries: list[Entry], inputs: StepInputs, weights: list[str]) -> Tables:
        kinds = [_Kind.of(entry.param, inputs.groups[entry.group]) for entry in entries]
        together: dict[_Kind, list[int]] = {}
        for i, kind in enumerate(kinds):
            together.setdefault(kind, []).append(i)
        storages = dict(self.key.storages)
        # A kernel computes in what its first slot is stored in.
        wide = storages[PARAM] == torch.float64
        dtype = torch.float64 if wide else torch.bfloat16
        self._stacks = [_Stack(*item, dtype, self.key.device) for item in together.items()]
        placed = {i: m for s in self._stacks for i, m in zip(s.positions, s.members, strict=True)}
        self._packed = [placed[i] for i in range(len(entries))]

        # A row of the second table's hyperparameters for each group and ratio.
        pairs = [(e.group, ratio_of(kind)) for e, kind in zip(entries, kinds, strict=True)]
        self._pairs = list(dict.fromkeys(pairs))
        slots = {PARAM: self._params, "grad": self._packed, "step": self._local_steps()}
        described = self._described(
            entries, self.key.rule, slots, weights, {**storages, "grad": dtype}, zero_grads=False
        )
        self._second = self._backend.tables(
            replace(described, groups=list(map(self._pairs.index, pairs)))
        )
        # Counters of its own, as each `advance` counts: what it draws depends on them.
        self._copied_steps = [step.clone() for step in self._local_steps()]
        slots = {
            PARAM: self._packed,
            "grad": [entry.grad for entry in entries],
            "step": self._copied_steps,
        }
        return self._backend.tables(
            self._described(
                entries, self._momentum.rule, slots, [*self.key.names], {**storages, PARAM: dtype},
                inputs.zero_grads,
            )
        )  # fmt: skip

    @property
    def _momentum(self) -> Algorithm:
        assert self._algorithm.momentum is not None
        return self._algorithm.momentum

    def _counting(self) -> Tables:
        return self._second

    def rows(self, rows: Rows) -> list[tuple[Tables, list[Row]]]:
        """As in PlannedBucket."""
        of_second = rows.of(self._algorithm)
        return [
            (self.tables, rows.of(self._momentum)),
            (self._second, [(*of_second[group], ratio) for group, ratio in self._pairs]),
        ]

    def follow(self, look: Look) -> None:
        """As in PlannedBucket."""
        before = self._has_grad
        super().follow(look)
        if self._has_grad != before:
            self._point_at_packed()

    def point_at(self, grads: list[Any]) -> None:
        """As in PlannedBucket."""
        super().point_at(grads)
        self._point_at_packed()

    def _point_at_packed(self) -> None:
        there = self._has_grad or [True] * len(self._packed)
        rows = zip(self._packed, there, strict=True)
        self._second.set_gradients(
            [(m.data_ptr() if m.numel() else NOWHERE) if has else 0 for m, has in rows]
        )

    def step(
        self, reductions: dict[torch.device, Reduction], reduced: bool, scaling: Scaling
    ) -> None:
        """Launches `advance` and `update` of both tables, and the products between them."""
        if self.key.seed is not None:  # what is drawn depends on them, and a user may write to one
            torch._foreach_copy_(self._copied_steps, self._local_steps())
        super().step(reductions, reduced, scaling)
        for stack in self._stacks:
            stack.orthogonalize()
        reduction = reductions[self.key.device]
        # The first `advance` has unscaled and clipped, and said whether to skip.
        found = reduction.nonfinite if scaling.skip_nonfinite else scaling.found_inf
        again = Scaling(found_inf=found).on(self.key.device)
        self._backend.advance(self._second, reduction, False, again)
        self._backend.update(self._second)

    def on_device(self) -> list[Tensor]:
        """As in PlannedBucket."""
        packed = [stack.memory for stack in self._stacks]
        return [*super().on_device(), *self._second.on_device(), *packed, *self._copied_steps]

    def describe(self) -> BucketDescription:
        """As in PlannedBucket."""
        return super().describe()._replace(second=self._second)
