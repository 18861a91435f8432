"""RMSprop."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm


class FusedRMSprop(FusedStep, torch.optim.RMSprop):
    """`torch.optim.RMSprop` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.RMSprop`, and those of `FusedStep`. State and
    checkpoints are torch's: `step`, `square_avg` and, with `centered`, `grad_avg`, with
    `momentum` above 0, `momentum_buffer`, each of the parameter's shape and dtype.

    Source: Hinton, Neural Networks for Machine Learning, lecture 6 (2012); centered: Graves,
    Generating Sequences With Recurrent Neural Networks (2013); in the form torch gives them.
    """

    algorithm = Algorithm(
        rule="rmsprop",
        rules_by_option={"centered": "centered_rmsprop"},
        states={
            "square_avg": ALWAYS,
            "grad_avg": "centered",
            "momentum_buffer": lambda group: group["momentum"] > 0,
        },
        # Centered it takes the root of a difference, which must not fall below 0.
        keeps_moments=lambda group: not group["centered"],
        squares=("square_avg",),
        hyperparameters=("lr", "alpha", "eps", "weight_decay", "momentum"),
        sparse_hint="use FusedSGD, or torch.optim.SparseAdam",
    )
