"""Adafactor."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm, Group, as_tuple

_HYPERPARAMETERS = ("lr", "beta2_decay", "eps", "d", "weight_decay")


class FusedAdafactor(FusedStep, torch.optim.Adafactor):
    """`torch.optim.Adafactor` in three passes over memory, with Lookahead.

    Takes every argument of `torch.optim.Adafactor`, and those of `FusedStep`. State and checkpoints
    are torch's: `step`; of a tensor of two dimensions or more `row_var` and `col_var`, of the shape
    of its rows and of its columns; of others `variance`, of the parameter's shape; all in the
    parameter's dtype. Vectors beside a 16-bit parameter are float32 where `master_weights`,
    `stochastic_rounding` or `state_dtype="float32"` is on; `state_dtype` takes nothing else.

    Where `eps[0]` is None it is the precision of each parameter's dtype. (Torch takes that of the
    first parameter of a group for all of them.)

    Source: Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (2018).
    """

    algorithm = Algorithm(
        rule="adafactor",
        vectors=("row_var", "col_var"),
        hyperparameters=_HYPERPARAMETERS,
        keeps_moments=False,
        measured=True,
        takes_complex=False,
        sparse_hint="torch.optim.SparseAdam takes them",
        sorts_by=("eps",),
        is_for_another=lambda param, _: param.dim() < 2,
        another=Algorithm(
            rule="adafactor_of_vectors",
            states={"variance": ALWAYS},
            squares=("variance",),
            hyperparameters=_HYPERPARAMETERS,
            keeps_moments=False,
            measured=True,
        ),
    )

    def _check_own(self, group: Group) -> None:
        eps = as_tuple(group["eps"])
        if not isinstance(eps, tuple) or len(eps) != 2:
            raise ValueError(
                f"Invalid eps {eps!r}: give two numbers, such as (None, 1e-3): the first for "
                "squares of gradients, the second for the size of a parameter."
            )
