"""RAdam."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm


class FusedRAdam(FusedStep, torch.optim.RAdam):
    """`torch.optim.RAdam` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.RAdam`, and those of `FusedStep`. State and checkpoints are
    torch's: `step`, `exp_avg` and `exp_avg_sq`, each of the parameter's shape and dtype.

    Source: Liu et al., On the Variance of the Adaptive Learning Rate and Beyond (2020).
    """

    algorithm = Algorithm(
        rule="radam",
        states={"exp_avg": ALWAYS, "exp_avg_sq": ALWAYS},
        squares=("exp_avg_sq",),
        hyperparameters=("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay"),
        sparse_hint="torch.optim.SparseAdam takes them",
    )
