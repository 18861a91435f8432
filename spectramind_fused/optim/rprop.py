"""Rprop."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm


class FusedRprop(FusedStep, torch.optim.Rprop):
    """`torch.optim.Rprop` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.Rprop`, and those of `FusedStep`. State and checkpoints are
    torch's: `step`, `prev` and `step_size`, each of the parameter's shape and dtype. As in torch,
    `lr` is only what the step sizes begin with.

    Source: Riedmiller and Braun, A Direct Adaptive Method for Faster Backpropagation Learning: The
    RPROP Algorithm (1993).
    """

    algorithm = Algorithm(
        rule="rprop",
        states={"prev": ALWAYS, "step_size": ALWAYS},
        keeps_moments=False,
        begins={"step_size": "lr"},
        hyperparameters=("lr", "etas", "step_sizes"),
        sparse_hint="use FusedSGD, or torch.optim.SparseAdam",
    )
