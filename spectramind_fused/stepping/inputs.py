"""What one step brings, and what comes out of it."""

from __future__ import annotations

from collections.abc import MutableMapping
from itertools import chain, compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import Scaling
from spectramind_fused.stepping.algorithm import Group
from spectramind_fused.stepping.shards import locals_of

# A getter without the detour of a Python property.
GRAD = vars(torch._C.TensorBase)["grad"].__get__


class StepInputs(NamedTuple):
    """What an optimizer has, and was asked to do, when it steps.

    Attributes:
        groups: its parameter groups.
        state: of each parameter.
        counters: step counters of parameters whose state has none, as torch's SGD keeps none.
        attributes: everything that the optimizer object has, for torch's step to read and write.
        max_norm: of `clip_grad_norm_`; None for no clipping.
        norm_group: the ranks that step other parameters: "world", a process group or None.
        zero_grads: whether to leave zeros in the gradients.
        scaling: what a GradScaler asks for.
        settled: the options of all groups and the norm are those of the last step.
    """

    groups: list[Group]
    state: MutableMapping[Tensor, dict[str, Any]]
    counters: dict[Tensor, Tensor]
    attributes: dict[str, Any]
    max_norm: float | None
    norm_group: Any
    zero_grads: bool
    scaling: Scaling
    settled: bool

    @property
    def needs_norm(self) -> bool:
        """Whether the gradients are read before the update."""
        return self.max_norm is not None or self.scaling.skip_nonfinite


def scaling_of(grad_scale: Any, found_inf: Any, skip_nonfinite: bool) -> Scaling:
    """What a scaler asks for, from the attributes that torch's leaves on an optimizer.

    Args:
        grad_scale: one number, or None.
        found_inf: one number, or None; ignored with `skip_nonfinite`.
        skip_nonfinite: whether the step itself looks for gradients that are not finite.

    Raises:
        ValueError: one of them is not one number.
    """
    return Scaling(
        _float32(grad_scale), None if skip_nonfinite else _float32(found_inf), skip_nonfinite
    )


def _float32(value: Any) -> Tensor | None:
    if value is None:
        return None
    tensor = torch.as_tensor(value, dtype=torch.float32).resolve_neg()
    if tensor.numel() != 1:
        raise ValueError(
            f"grad_scale and found_inf are one number each, not of shape {tuple(tensor.shape)}."
        )
    return tensor


class StepResult(NamedTuple):
    """What a step found out about its gradients.

    Attributes:
        norm: float64 0-dim, of all unscaled gradients; None where it was not taken.
        nonfinite: for each device a float32, 1 if any gradient on any of them is not finite.
    """

    norm: Tensor | None
    nonfinite: dict[torch.device, Tensor]


class Members(NamedTuple):
    """Parameters, with the gradients of a step.

    Attributes:
        params: as the user holds them.
        grads: their gradients, likewise; None of one that takes no part.
        local_params: this rank's parts of them; the same list where all are plain tensors.
        local_grads: likewise.
    """

    params: list[Tensor]
    grads: list[Any]
    local_params: list[Tensor]
    local_grads: list[Any]

    @classmethod
    def of(cls, params: list[Tensor], grads: list[Any]) -> Members:
        """With this rank's parts of them."""
        return cls(params, grads, locals_of(params), locals_of(grads))


class Participants(NamedTuple):
    """Who takes part in a step.

    Attributes:
        everyone: all parameters of all groups, as the user holds them.
        in_groups: how many of them each group has.
        grads: of each of them its gradient, or None.
        has_grad: for each of them whether it has one: then it takes part.
    """

    everyone: list[Tensor]
    in_groups: list[int]
    grads: list[Any]
    has_grad: list[bool]

    @classmethod
    def of(cls, groups: list[Group]) -> Participants:
        """Whoever has a gradient now."""
        lists = [group["params"] for group in groups]
        everyone = list(chain.from_iterable(lists))
        grads = list(map(GRAD, everyone))
        return cls(everyone, list(map(len, lists)), grads, [grad is not None for grad in grads])

    def chosen(self, selectors: list[bool]) -> Members:
        """Some of the parameters, whether they take part or not."""
        if all(selectors):
            return Members.of(self.everyone, self.grads)
        params, grads = compress(self.everyone, selectors), compress(self.grads, selectors)
        return Members.of(list(params), list(grads))

    def present(self) -> Members:
        """Those that take part."""
        return self.chosen(self.has_grad)
