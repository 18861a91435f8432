"""ASGD."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm


class FusedASGD(FusedStep, torch.optim.ASGD):
    """`torch.optim.ASGD` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.ASGD`, and those of `FusedStep`. State and checkpoints are
    torch's: `step`, `eta`, `mu`, and `ax`, the average, of the parameter's shape and dtype.

    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992), in
    the form torch gives it.
    """

    algorithm = Algorithm(
        rule="asgd",
        states={"ax": ALWAYS},
        keeps_moments=False,
        numbers=("eta", "mu"),
        begins={"eta": "lr", "mu": 1.0},
        hyperparameters=("lr", "lambd", "alpha", "t0", "weight_decay"),
        sparse_hint="use FusedSGD, or torch.optim.SparseAdam",
    )
