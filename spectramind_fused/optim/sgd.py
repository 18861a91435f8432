"""SGD with momentum."""

from __future__ import annotations

from typing import Any

import torch

from spectramind_fused.optim.step import FusedStep


class FusedSGD(FusedStep, torch.optim.SGD):
    """`torch.optim.SGD` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.SGD`, and those of `FusedStep`. State and
    checkpoints are torch's `momentum_buffer`; beside it stands `step`, which torch's SGD
    ignores.

    Source: Sutskever et al., On the importance of initialization and momentum (2013), in
    the form torch gives it.
    """

    rule = "sgd"
    state_names = ("momentum_buffer",)
    torch_counts_steps = False

    @classmethod
    def _states(cls, group: dict[str, Any]) -> tuple[str, ...]:
        return cls.state_names if group["momentum"] != 0 else ()

    @staticmethod
    def _hyperparameters(group: dict[str, Any]) -> tuple[Any, ...]:
        names = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
        return tuple(group[name] for name in names)
