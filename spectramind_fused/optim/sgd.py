"""SGD with momentum."""

from __future__ import annotations

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import Algorithm


class FusedSGD(FusedStep, torch.optim.SGD):
    """`torch.optim.SGD` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.SGD`, and those of `FusedStep`. State and
    checkpoints are torch's `momentum_buffer`; with Lookahead `step` stands beside it, which
    torch's SGD ignores.

    Source: Sutskever et al., On the importance of initialization and momentum (2013), in
    the form torch gives it.
    """

    algorithm = Algorithm(
        rule="sgd",
        states={"momentum_buffer": "momentum"},
        hyperparameters=("lr", "momentum", "dampening", "weight_decay", "nesterov"),
        torch_counts_steps=False,
    )
