"""RMSprop."""

from __future__ import annotations

from typing import Any

import torch

from spectramind_fused.optim.step import FusedStep


class FusedRMSprop(FusedStep, torch.optim.RMSprop):
    """`torch.optim.RMSprop` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.RMSprop`, and those of `FusedStep`. State and
    checkpoints are torch's: `step`, `square_avg` and, with `centered`, `grad_avg`, with
    `momentum` above 0, `momentum_buffer`, each of the parameter's shape and dtype.

    Source: Hinton, Neural Networks for Machine Learning, lecture 6 (2012); centered: Graves,
    Generating Sequences With Recurrent Neural Networks (2013); in the form torch gives them.
    """

    rule = "rmsprop"
    state_names = ("square_avg", "grad_avg", "momentum_buffer")
    sparse_hint = "use FusedSGD, or torch.optim.SparseAdam"

    @classmethod
    def _rule(cls, group: dict[str, Any]) -> str:
        return "centered_rmsprop" if group["centered"] else cls.rule

    @classmethod
    def _states(cls, group: dict[str, Any]) -> tuple[str, ...]:
        held = (True, group["centered"], group["momentum"] > 0)
        return tuple(name for name, on in zip(cls.state_names, held, strict=True) if on)

    @staticmethod
    def _hyperparameters(group: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(group[name] for name in ("lr", "alpha", "eps", "weight_decay", "momentum"))
