"""What a plan was built on. Compared at every step, so all of it runs at the speed of C."""

from __future__ import annotations

from itertools import chain, compress
from operator import is_, not_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.optim.shards import PLAIN, is_dtensor, locals_of
from spectramind_fused.optim.state import extras

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep

# Getters without the detour of a Python property or a bound method.
_GRAD, _DTYPE = (
    vars(torch._C.TensorBase)["grad"].__get__,
    vars(torch._C.TensorBase)["dtype"].__get__,
)


class Participants(NamedTuple):
    """Who takes part in a step.

    Attributes:
        params: the parameters that have a gradient, as the user holds them.
        grads: their gradients, likewise.
        local_params: this rank's parts of them; the same list where all are plain tensors.
        local_grads: likewise.
    """

    params: list[Tensor]
    grads: list[Tensor]
    local_params: list[Tensor]
    local_grads: list[Tensor]

    @classmethod
    def of(cls, optimizer: FusedStep) -> Participants:
        """All parameters that have a gradient."""
        params = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
        grads = list(map(_GRAD, params))
        has_grad = [grad is not None for grad in grads]
        if not all(has_grad):
            params, grads = list(compress(params, has_grad)), list(compress(grads, has_grad))
        return cls(params, grads, locals_of(params), locals_of(grads))


class Fingerprint:
    """Who takes part, where parameters and states lie, how gradients lie, what sorts them."""

    def __init__(self, optimizer: FusedStep, who: Participants) -> None:
        self._params = who.params
        self._entries = list(_state_entries(optimizer))
        self._values = _values(optimizer, who)

    def fits(self, optimizer: FusedStep, who: Participants) -> bool:
        """Whether nothing changed but contents, and the addresses of gradients."""
        return (
            len(who.params) == len(self._params)
            and all(map(is_, who.params, self._params))
            and sum(map(len, optimizer.state.values())) == len(self._entries)
            and all(map(is_, _state_entries(optimizer), self._entries))
            and (who.local_grads is who.grads or PLAIN.issuperset(map(type, who.local_grads)))
            and self._values == _values(optimizer, who)
        )


def _state_entries(optimizer: FusedStep) -> chain[Any]:
    return chain.from_iterable(map(dict.values, optimizer.state.values()))


def _values(optimizer: FusedStep, who: Participants) -> list[Any]:
    """What can be compared by value; nothing for gradients that have no strides."""
    params, grads = who.local_params, who.local_grads
    try:
        contiguous = list(map(Tensor.is_contiguous, grads))
    except RuntimeError:  # sparse
        return []
    return [
        list(map(Tensor.data_ptr, params)),
        list(map(Tensor.numel, grads)),  # param.data may become a slice of itself
        contiguous,
        list(map(Tensor.stride, compress(grads, map(not_, contiguous)))),
        list(map(_DTYPE, grads)),
        list(map(Tensor.is_neg, grads)),
        _placements(who.grads) if grads is not who.grads else [],
        [_sorting(optimizer, group) for group in optimizer.param_groups],
    ]


def _placements(grads: list[Any]) -> list[Any]:
    return [grad.placements for grad in grads if is_dtensor(grad)]


def _sorting(optimizer: FusedStep, group: dict[str, Any]) -> tuple[Any, ...]:
    """What of a group decides how its parameters are sorted."""
    return (
        optimizer._rule(group),
        optimizer._states(group),
        extras(group),
        optimizer.zero_grads,
        group.get("foreach"),
        group.get("differentiable"),
        group.get("capturable"),
    )
