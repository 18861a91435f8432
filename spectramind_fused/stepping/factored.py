"""Buckets whose steps are measured before they are taken, and those of factored tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spectramind_fused.multi_tensor import Bucket, Reduction, Scaling
from spectramind_fused.multi_tensor.factoring import Factoring
from spectramind_fused.multi_tensor.storages import FACTORED
from spectramind_fused.stepping.bucket import Entry, PlannedBucket
from spectramind_fused.stepping.shards import local


class MeasuredBucket(PlannedBucket):
    """One whose steps are as long as what is stepped, so that all of it is read first."""

    def _described(self, entries: list[Entry], *args: Any) -> Bucket:
        return replace(super()._described(entries, *args), measured=True)

    def _step(self) -> None:
        self._backend.measure(self.tables)
        self._backend.update(self.tables)


class FactoredBucket(MeasuredBucket):
    """One of tensors whose mean squares are kept for rows and columns.

    The product of both stands in the place of the rule's state, of which it is a storage.
    """

    def _described(self, entries: list[Entry], *args: Any) -> Bucket:
        bucket = super()._described(entries, *args)
        rows, columns = (
            [local(entry.state[name]) for entry in entries] for name in self.key.vectors
        )
        factoring = Factoring(self._params, rows, columns)
        slots, storages = bucket.slots, bucket.storages
        return replace(
            bucket,
            states=1,
            slots=(*slots[:3], factoring.outer, *slots[3:]),
            storages=(*storages[:3], FACTORED, *storages[3:]),
            beside=(*bucket.beside, factoring.inner, list(factoring.layouts)),
            factoring=factoring,
        )

    def norm(self, reductions: dict[Any, Reduction]) -> None:
        """Launches `squares`, which leaves what `norm` does."""
        self._backend.squares(self.tables, reductions[self.tables.device])

    def step(self, reductions: dict[Any, Reduction], reduced: bool, scaling: Scaling) -> None:
        """Launches `squares`, if it has not run, and all that follows it."""
        if not reduced:
            self.norm(reductions)
        super().step(reductions, reduced, scaling)

    def _step(self) -> None:
        self._backend.factor(self.tables)
        super()._step()
