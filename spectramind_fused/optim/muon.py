"""Muon: torch's class with what it lacks, and the fused one over it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.optim.adam import FusedAdamW
from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm, Group, as_tuple
from spectramind_fused.stepping.matrices import learning_rate_ratio
from spectramind_fused.stepping.orthogonal import (
    MOST_STEPS,
    check_coefficients,
    orthogonalized,
)
from spectramind_fused.stepping.shards import split_like, whole
from spectramind_fused.stepping.storage import begun

# What a group that AdamW steps has, if it does not say otherwise: the defaults of torch's AdamW.
# Muon's learning rate would be far too large.
_ADAMW: dict[str, Any] = {
    "lr": 1e-3,
    "weight_decay": 1e-2,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}
_PARTED = ("batched", "split_sizes")


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, and AdamW for the groups that say `use_muon=False`.

    An argument is an option of all groups; a group may have its own. Where AdamW steps some groups,
    `FusedMuon` loads a checkpoint of torch's two classes put together, and this class does not.

    Args:
        params: parameters, named parameters or groups. A group with `use_muon=False` is stepped by
            AdamW: it may hold parameters of any shape, and its `lr`, `weight_decay`, `betas`, `eps`
            and `amsgrad` are AdamW's, with the defaults of `torch.optim.AdamW`.
        lr, weight_decay, momentum, nesterov, eps, ns_steps, adjust_lr_fn: as in `torch.optim.Muon`.
        ns_coefficients: three numbers, as in `torch.optim.Muon`, or "polar_express": another
            polynomial for each step (Amsel et al. 2025), which comes closer to orthogonal.
        batched: parameters of more than two dimensions are stacks of matrices, as experts are
            kept: each matrix is made orthogonal by itself.
        split_sizes: how many rows belong to each matrix of a parameter, as of a fused query, key
            and value; each is made orthogonal by itself.

    Raises:
        ValueError: an argument is out of range, or does not fit a parameter.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024).
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] | str = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        batched: bool = False,
        split_sizes: tuple[int, ...] | None = None,
    ) -> None:
        # Torch's constructor checks the arguments, and would refuse what AdamW is to step.
        defaults = torch.optim.Muon(
            [torch.empty(1, 1)],
            lr,  # type: ignore[arg-type]
            weight_decay,
            momentum,
            nesterov,
            ns_coefficients,  # type: ignore[arg-type]
            eps,
            ns_steps,
            adjust_lr_fn,
        ).defaults
        given = {"batched": batched or None, "split_sizes": split_sizes}
        defaults |= {name: as_tuple(v) for name, v in given.items() if v is not None}
        defaults["ns_coefficients"] = as_tuple(ns_coefficients)
        torch.optim.Optimizer.__init__(self, params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does.

        Raises:
            ValueError: it does not fit its options.
        """
        if isinstance(param_group, dict):
            if not _uses_muon(param_group):
                param_group.update({**_ADAMW, **param_group})
            tuples = {"ns_coefficients", "split_sizes"} & param_group.keys()
            param_group.update({name: as_tuple(param_group[name]) for name in tuples})
        super().add_param_group(param_group)
        try:
            check_matrices(self.param_groups[-1])
        except ValueError:
            del self.param_groups[-1]
            raise

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Performs one step.

        Args:
            closure: reevaluates the model and returns the loss.

        Raises:
            RuntimeError: a gradient is sparse, or a parameter complex.
            ValueError: an option of a group is out of range.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                if not _uses_muon(group):
                    self._step_as(torch.optim.AdamW, group)
                elif any(group.get(name) for name in _PARTED) or _is_named(group):
                    self._step_parted(group)
                else:
                    self._step_as(torch.optim.Muon, group)
        return loss

    def _step_as(self, cls: type[torch.optim.Optimizer], group: Group) -> None:
        """Steps one group by the code of a torch class."""
        other = object.__new__(cls)
        vars(other).update({**vars(self), "param_groups": [group]})
        inspect.unwrap(cls.step)(other)

    def _step_parted(self, group: Group) -> None:
        """For matrices that are parts of a parameter, or with a polynomial for each step."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        buffers: list[Tensor] = []
        self._init_group(group, params, grads, buffers)
        lr: Any = group["lr"]
        weight_decay, momentum = group["weight_decay"], group["momentum"]
        lr = lr.squeeze() if isinstance(lr, Tensor) else lr  # of one element
        newton_schulz = as_tuple(group["ns_coefficients"]), group["ns_steps"], group["eps"]
        for p, grad, buffer in zip(params, grads, buffers, strict=True):
            buffer.lerp_(grad, 1 - momentum)
            update = grad.lerp(buffer, momentum) if group["nesterov"] else buffer
            update = whole(update).clone()
            for part in torch.split(update, group.get("split_sizes") or p.shape[-2], dim=-2):
                ratio = learning_rate_ratio(group["adjust_lr_fn"], part.shape)
                part.copy_(orthogonalized(part, *newton_schulz)).mul_(ratio)
            p.mul_(1 - lr * weight_decay).add_(split_like(update, p), alpha=-lr)


def _uses_muon(group: Group) -> bool:
    return bool(group.get("use_muon", True))


def _is_named(group: Group) -> bool:
    return isinstance(group["ns_coefficients"], str)


def check_matrices(group: Group) -> None:
    """Refuses parameters of which Muon makes no matrices, and what they are to be made by.

    Raises:
        ValueError: says which.
    """
    if not _uses_muon(group):
        if "betas" not in group:
            raise ValueError(
                "use_muon was switched off in a group of Muon's: build another optimizer, as AdamW "
                "needs a learning rate, betas and eps of its own."
            )
        return
    check_coefficients(as_tuple(group["ns_coefficients"]))
    steps, adjust = group["ns_steps"], group["adjust_lr_fn"]
    if not isinstance(steps, Integral) or not 0 <= int(steps) <= MOST_STEPS:
        raise ValueError(f"Invalid ns_steps {steps!r}: give a whole number from 0 to {MOST_STEPS}.")
    eps = group["eps"]
    if not isinstance(eps, Real) or not 0 <= float(eps) < math.inf:
        raise ValueError(f"Invalid eps {eps!r}: give a number of 0 or more.")
    if adjust not in (None, "original", "match_rms_adamw"):
        raise ValueError(
            f"Adjust learning rate function {adjust} is not supported: give None, 'original' or "
            "'match_rms_adamw'."
        )
    sizes = as_tuple(group.get("split_sizes"))
    counts = isinstance(sizes, tuple) and all(isinstance(n, Integral) and int(n) > 0 for n in sizes)
    if sizes is not None and not counts:
        raise ValueError(f"Invalid split_sizes {sizes!r}: give whole numbers above 0, or None.")
    for p in group["params"]:
        _check_matrix(p, group)


def _check_matrix(p: Tensor, group: Group) -> None:
    if p.dim() != 2 and not (p.dim() > 2 and group.get("batched")):
        more = ", or batched=True for stacks of matrices" if p.dim() > 2 else ""
        raise ValueError(
            f"Muon only supports 2D parameters whereas we found a parameter with size: "
            f"{p.size()}: put it into a group with use_muon=False, which AdamW steps{more}."
        )
    sizes = as_tuple(group.get("split_sizes"))
    if sizes is not None and sum(sizes) != p.shape[-2]:
        raise ValueError(
            f"split_sizes={sizes} does not split the {p.shape[-2]} rows of a parameter of "
            f"shape {tuple(p.shape)}: give sizes that add up to them, in a group of such "
            "parameters alone."
        )


def check_member(param: Tensor, group: Group, state: dict[str, Any]) -> None:
    """Refuses a parameter that its group cannot step: it may have come from another one.

    Raises:
        ValueError: it is no matrix, or has a state that the other rule made.
    """
    muon = _uses_muon(group)
    if muon:
        _check_matrix(param, group)
    other = "exp_avg" if muon else "momentum_buffer"
    if begun(state, other):
        rule, before = ("Muon", "AdamW") if muon else ("AdamW", "Muon")
        raise ValueError(
            f"A parameter of shape {tuple(param.shape)} is to be stepped by {rule}, and has "
            f"{other!r}, a state of {before}'s: use_muon was switched in its group, or it came "
            "from another one. Delete its state from optimizer.state, and it begins anew."
        )


class FusedMuon(FusedStep, Muon):
    """`torch.optim.Muon`, and AdamW beside it, with Lookahead; matrices of a shape all at once.

    Takes every argument of `torch.optim.Muon`, those of `Muon` here, and those of `FusedStep`:
    momentum in one pass over memory, Newton-Schulz as batched products of torch in bfloat16, the
    update in another pass. State and checkpoints are torch's: `momentum_buffer`, and those of AdamW
    in groups with `use_muon=False`.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024).
    """

    algorithm = Algorithm(
        rule="muon",
        states={"momentum_buffer": ALWAYS},
        hyperparameters=("lr", "weight_decay"),
        momentum=Algorithm(
            rule="muon_momentum", hyperparameters=("momentum", "nesterov"), maximizes=False
        ),
        another=FusedAdamW.algorithm,
        is_for_another=lambda _, group: not _uses_muon(group),
        maximizes=False,
        sparse_hint="use torch.optim.SparseAdam for their parameters",
        torch_counts_steps=False,
        sorts_by=("ns_coefficients", "ns_steps", "eps", "adjust_lr_fn"),
        beyond_torch=("use_muon", "batched", "split_sizes"),
        check=check_member,
    )

    def _check_own(self, group: Group) -> None:
        check_matrices(group)
