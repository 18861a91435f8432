"""NAdam."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm


class FusedNAdam(FusedStep, torch.optim.NAdam):
    """`torch.optim.NAdam` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.NAdam`, and those of `FusedStep`. State and checkpoints are
    torch's: `step`, `mu_product`, and `exp_avg` and `exp_avg_sq`, both of the parameter's shape and
    dtype.

    Source: Dozat, Incorporating Nesterov Momentum into Adam (2016).
    """

    algorithm = Algorithm(
        rule="nadam",
        states={"exp_avg": ALWAYS, "exp_avg_sq": ALWAYS},
        squares=("exp_avg_sq",),
        numbers=("mu_product",),
        begins={"mu_product": 1.0},
        hyperparameters=(
            "lr", "betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay"
        ),
        sparse_hint="torch.optim.SparseAdam takes them",
    )  # fmt: skip
