"""Adadelta."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm


class FusedAdadelta(FusedStep, torch.optim.Adadelta):
    """`torch.optim.Adadelta` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.Adadelta`, and those of `FusedStep`. State and checkpoints
    are torch's: `step`, `square_avg` and `acc_delta`, each of the parameter's shape and dtype.

    Source: Zeiler, ADADELTA: An Adaptive Learning Rate Method (2012).
    """

    algorithm = Algorithm(
        rule="adadelta",
        states={"square_avg": ALWAYS, "acc_delta": ALWAYS},
        squares=("square_avg", "acc_delta"),
        hyperparameters=("lr", "rho", "eps", "weight_decay"),
        sparse_hint="use FusedAdagrad, or torch.optim.SparseAdam",
    )
