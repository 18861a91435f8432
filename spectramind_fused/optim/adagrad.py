"""Adagrad."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm


class FusedAdagrad(FusedStep, torch.optim.Adagrad):
    """`torch.optim.Adagrad` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.Adagrad`, and those of `FusedStep`. State and checkpoints
    are torch's: `step`, and `sum` of the parameter's shape and dtype, which are there from the
    beginning. Sparse gradients are stepped by torch.

    Source: Duchi et al., Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization (2011).
    """

    algorithm = Algorithm(
        rule="adagrad",
        states={"sum": ALWAYS},
        squares=("sum",),
        begins={"sum": "initial_accumulator_value"},
        hyperparameters=("lr", "lr_decay", "weight_decay", "eps"),
    )
