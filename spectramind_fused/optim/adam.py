"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

import torch

from spectramind_fused.optim.step import FusedStep


class FusedAdam(FusedStep, torch.optim.Adam):
    """`torch.optim.Adam` in one pass over memory, with Lookahead.

    Takes every argument of `torch.optim.Adam`, and those of `FusedStep`. State and
    checkpoints are torch's: `step`, `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
    `max_exp_avg_sq`, each of the parameter's shape and dtype.

    Source: Kingma and Ba, Adam (2015); Reddi et al., AMSGrad (2018).
    """

    rule = "adam"
    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    sparse_hint = "torch.optim.SparseAdam takes them"

    @classmethod
    def _states(cls, group: dict[str, Any]) -> tuple[str, ...]:
        return cls.state_names if group["amsgrad"] else cls.state_names[:2]

    @staticmethod
    def _hyperparameters(group: dict[str, Any]) -> tuple[Any, ...]:
        decoupled = group["decoupled_weight_decay"]
        return (group["lr"], *group["betas"], group["eps"], group["weight_decay"], decoupled)


class FusedAdamW(FusedAdam, torch.optim.AdamW):
    """`torch.optim.AdamW` in one pass over memory, with Lookahead.

    As `FusedAdam`, with the weight decay decoupled from the gradient.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019).
    """
