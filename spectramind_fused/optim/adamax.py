"""Adamax."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm


class FusedAdamax(FusedStep, torch.optim.Adamax):
    """`torch.optim.Adamax` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.Adamax`, and those of `FusedStep`. State and checkpoints
    are torch's: `step`, `exp_avg` and `exp_inf`, each of the parameter's shape and dtype.

    Source: Kingma and Ba, Adam (2015), section 7.1.
    """

    algorithm = Algorithm(
        rule="adamax",
        states={"exp_avg": ALWAYS, "exp_inf": ALWAYS},
        squares=("exp_inf",),
        hyperparameters=("lr", "betas", "eps", "weight_decay"),
        sparse_hint="torch.optim.SparseAdam takes them",
    )
