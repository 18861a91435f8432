"""Adam and AdamW."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm


class FusedAdam(FusedStep, torch.optim.Adam):
    """`torch.optim.Adam` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.Adam`, and those of `FusedStep`. State and
    checkpoints are torch's: `step`, `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
    `max_exp_avg_sq`, each of the parameter's shape and dtype.

    Source: Kingma and Ba, Adam (2015); Reddi et al., AMSGrad (2018).
    """

    algorithm = Algorithm(
        rule="adam",
        states={"exp_avg": ALWAYS, "exp_avg_sq": ALWAYS, "max_exp_avg_sq": "amsgrad"},
        squares=("exp_avg_sq", "max_exp_avg_sq"),
        hyperparameters=("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay"),
        sparse_hint="torch.optim.SparseAdam takes them",
    )


class FusedAdamW(FusedAdam, torch.optim.AdamW):
    """`torch.optim.AdamW` in one pass over memory, with Lookahead.

    As `FusedAdam`, with the weight decay decoupled from the gradient.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019).
    """
