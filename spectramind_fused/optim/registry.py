"""Every optimizer that kernels serve, one row each: the only list of them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import compress
from operator import not_
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.optim.adadelta import FusedAdadelta
from spectramind_fused.optim.adafactor import FusedAdafactor
from spectramind_fused.optim.adagrad import FusedAdagrad
from spectramind_fused.optim.adam import FusedAdam, FusedAdamW
from spectramind_fused.optim.adamax import FusedAdamax
from spectramind_fused.optim.asgd import FusedASGD
from spectramind_fused.optim.base import FusedStep
from spectramind_fused.optim.lion import FusedLion
from spectramind_fused.optim.muon import FusedMuon
from spectramind_fused.optim.nadam import FusedNAdam
from spectramind_fused.optim.radam import FusedRAdam
from spectramind_fused.optim.rmsprop import FusedRMSprop
from spectramind_fused.optim.rprop import FusedRprop
from spectramind_fused.optim.sgd import FusedSGD

__all__ = [
    "FusedASGD", "FusedAdadelta", "FusedAdafactor", "FusedAdagrad", "FusedAdam", "FusedAdamW",
    "FusedAdamax", "FusedLion", "FusedMuon", "FusedNAdam", "FusedRAdam", "FusedRMSprop",
    "FusedRprop", "FusedSGD",
]  # fmt: skip


@dataclass(frozen=True)
class OptimizerInfo:
    """What is known of an optimizer beyond its class.

    Attributes:
        cls: the class; its `algorithm` has its rule, states and hyperparameters.
        usual: the options that it is timed with, in full: libraries differ in their defaults.
        also_in: packages beside torch that have it with these options.
        required: hyperparameters that a config must name.
        decoupled: whether its weight decay never meets the gradient.
    """

    cls: type[FusedStep]
    usual: dict[str, Any]
    also_in: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    decoupled: bool = False

    @property
    def name(self) -> str:
        """The `type` in a config; torch's name, where torch has it."""
        return self.cls.__name__.removeprefix("Fused")

    @property
    def in_torch(self) -> bool:
        """Whether torch.optim has it."""
        return issubclass(self.cls, getattr(torch.optim, self.name, ()))

    @property
    def usual_states(self) -> int:
        """How many states it holds of each element of a matrix, with the usual options."""
        arguments = inspect.signature(self.cls).parameters
        group = {name: p.default for name, p in arguments.items()} | self.usual
        return len(self.cls.algorithm.states_of(group))

    def groups_of(self, params: list[Tensor], **of_rest: Any) -> list[Any]:
        """Parameters as the class takes them: those of Muon in groups, the rest for AdamW.

        A table of words, one side of which is far longer than the other, is of the rest.

        Args:
            params: of a model.
            **of_rest: options of the rest.
        """
        if not self.of_matrices:
            return params
        squares = [p.dim() == 2 and max(p.shape) <= 16 * min(p.shape) for p in params]
        rest = list(compress(params, map(not_, squares)))
        groups = [
            {"params": list(compress(params, squares))},
            {"params": rest, "use_muon": False, **of_rest},
        ]
        return [group for group in groups if group["params"]]

    @property
    def of_matrices(self) -> bool:
        """Whether it steps by products of whole matrices, and takes no other parameters alone."""
        return self.cls.algorithm.momentum is not None


_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
_CPU_AND_TRITON = ("deepspeed", "torch-optimi")

OPTIMIZERS = {
    info.name: info
    for info in (
        OptimizerInfo(FusedAdam, {**_ADAM, "weight_decay": 0.0}, _CPU_AND_TRITON, ("betas",)),
        OptimizerInfo(
            FusedAdamW, {**_ADAM, "weight_decay": 0.01}, _CPU_AND_TRITON, ("betas",), decoupled=True
        ),
        OptimizerInfo(
            FusedSGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}, required=("momentum",)
        ),
        OptimizerInfo(FusedRMSprop, {"lr": 1e-3}),
        OptimizerInfo(
            FusedLion,
            {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.01},
            (*_CPU_AND_TRITON, "pytorch-optimizer"),
            ("betas",),
            decoupled=True,
        ),
        OptimizerInfo(FusedNAdam, {**_ADAM, "weight_decay": 0.01}),
        OptimizerInfo(FusedRAdam, {**_ADAM, "weight_decay": 0.01}),
        OptimizerInfo(FusedAdagrad, {"lr": 1e-2}),
        OptimizerInfo(FusedAdamax, {**_ADAM, "lr": 2e-3}),
        OptimizerInfo(FusedAdadelta, {"lr": 1.0}),
        OptimizerInfo(FusedASGD, {"lr": 1e-2}),
        OptimizerInfo(FusedRprop, {"lr": 1e-2}),
        OptimizerInfo(FusedMuon, {"lr": 2e-2, "weight_decay": 0.01}, decoupled=True),
        OptimizerInfo(FusedAdafactor, {"lr": 1e-2}, decoupled=True),
    )
}
