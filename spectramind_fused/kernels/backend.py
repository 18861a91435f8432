"""What every kernel backend offers."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import Bucket, Reduction, Scaling, Tables


class Backend(Protocol):
    """Runs a step over tables: two to four launches, whatever the number of tensors."""

    name: str

    def unavailable(self, device: torch.device) -> str | None:
        """Why this backend cannot run on `device`, or None where it can."""

    def prefers(self, device: torch.device) -> bool:
        """Whether backend="auto" should take it on `device`, if it can run; asks no driver."""

    def has_rule(self, rule: str) -> bool:
        """Whether it has a rule, with whatever number of states; asked of one that can run."""

    def unsupported(self, dtype: torch.dtype) -> str | None:
        """Why parameters or states of `dtype` cannot be served, or None where they can."""

    def tables(self, bucket: Bucket) -> Tables:
        """Builds the tables of a bucket in this backend's chunk size."""

    def bad_counter(self, tables: Tables) -> int | None:
        """The first tensor whose step counter is no number of steps, where that costs no wait."""

    def norm(self, tables: Tables, reduction: Reduction) -> None:
        """Writes the partial sums of each piece of the gradients: one launch."""

    def sums(self, reduction: Reduction) -> Tensor:
        """What `advance` is to add up, when all of `norm` is done: a launch if it is much."""

    def advance(
        self, tables: Tables, reduction: Reduction, reduced: bool, scaling: Scaling
    ) -> None:
        """Counts a step for every tensor and derives the scalars from it: one launch.

        `reduced` says whether `norm` has run for this step; then `reduction.sums` are its sums.
        """

    def update(self, tables: Tables) -> None:
        """Updates parameters, states, slow and averaged weights: one launch."""

    def squares(self, tables: Tables, reduction: Reduction) -> None:
        """In the place of `norm` of factored tensors: also the sums of rows and columns."""

    def factor(self, tables: Tables) -> None:
        """Moves the vectors of factored tensors on, and makes factors of them: two launches."""

    def measure(self, tables: Tables) -> None:
        """Adds up the squares of directions and parameters, and scales the steps: two launches."""
