"""What a plan was built on. Compared at every step, so all of it runs at the speed of C.

A kernel knows a tensor by its address. Torch lets a user move the memory of a tensor, or change how
it is read, while the object stays the same (`.data`, `set_`, `resize_`, `t_`, `swap_tensors`,
`share_memory_`). So tensors are compared by where they lie and how, not by identity.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import chain, compress
from operator import is_, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.kernels.host import Facts
from spectramind_fused.multi_tensor import overlapping
from spectramind_fused.optim.shards import is_dtensor, locals_of
from spectramind_fused.optim.state import extras

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep

# A getter without the detour of a Python property.
_GRAD = vars(torch._C.TensorBase)["grad"].__get__


# What a tensor raises that has no memory or no strides, and what is none, or missing.
_SILENT = (RuntimeError, NotImplementedError, BufferError, TypeError, AttributeError, KeyError)


class Participants(NamedTuple):
    """Who takes part in a step.

    Attributes:
        everyone: all parameters of all groups, as the user holds them.
        in_groups: how many of them each group has.
        has_grad: for each of them whether it has a gradient: then it takes part.
        params: the parameters that take part.
        grads: their gradients, likewise.
        local_params: this rank's parts of them; the same list where all are plain tensors.
        local_grads: likewise.
    """

    everyone: list[Tensor]
    in_groups: list[int]
    has_grad: list[bool]
    params: list[Tensor]
    grads: list[Tensor]
    local_params: list[Tensor]
    local_grads: list[Tensor]

    @classmethod
    def of(cls, optimizer: FusedStep) -> Participants:
        """All parameters that have a gradient."""
        lists = [group["params"] for group in optimizer.param_groups]
        params = everyone = list(chain.from_iterable(lists))
        grads = list(map(_GRAD, params))
        has_grad = [grad is not None for grad in grads]
        if not all(has_grad):
            params, grads = list(compress(params, has_grad)), list(compress(grads, has_grad))
        in_groups = list(map(len, lists))
        return cls(
            everyone, in_groups, has_grad, params, grads, locals_of(params), locals_of(grads)
        )


class Kept:
    """States of the parameters of one bucket, and which of their entries its kernels are given."""

    def __init__(self, states: list[dict[str, Any]], names: list[tuple[str, ...]]) -> None:
        """As above; `names` are those of the entries, for each state."""
        self._all = states
        self._sizes = list(map(len, states))
        self._states: dict[Callable[[Any], Any], list[dict[str, Any]]] = {}
        for of_one in filter(None, dict.fromkeys(names)):
            entries = itemgetter(*of_one, *of_one[:1])  # the first once more: a tuple also of one
            self._states[entries] = list(compress(states, map(of_one.__eq__, names)))

    def complete(self) -> bool:
        """Whether no entry has been added or lost."""
        return list(map(len, self._all)) == self._sizes

    def tensors(self) -> Iterator[Tensor]:
        """The entries as they are now.

        Raises:
            KeyError: one is missing.
        """
        for entries, states in self._states.items():
            yield from chain.from_iterable(map(entries, states))


class Fingerprint:
    """Who takes part, where parameters and states lie and how, and how gradients lie.

    Also what sorts the parameters into buckets.
    """

    def __init__(self, optimizer: FusedStep, who: Participants, kept: list[Kept]) -> None:
        self._everyone = who.everyone
        self._holders, self._states = list(optimizer.state), list(optimizer.state.values())
        self._kept = kept
        self._sorted_by = _sorted_by(optimizer, who)
        lasting = _lasting(who, kept)
        self._facts = Facts(lasting + who.local_grads, len(lasting))
        self._zeroed_at: list[int] = []
        self._overlapping = overlapping(who.local_grads) if optimizer.zero_grads else set()

    @classmethod
    def of(cls, optimizer: FusedStep, who: Participants, kept: list[Kept]) -> Fingerprint | None:
        """As above; None where a tensor does not say where it lies, as some subclasses do not."""
        try:
            return cls(optimizer, who, kept)
        except _SILENT:
            return None

    def fits(self, optimizer: FusedStep, who: Participants) -> bool:
        """Whether nothing changed but contents, and the addresses of gradients."""
        state = optimizer.state
        try:
            return (
                _are(who.everyone, self._everyone)
                and _are(state, self._holders)
                and _are(state.values(), self._states)
                and all(of_bucket.complete() for of_bucket in self._kept)
                and _sorted_by(optimizer, who) == self._sorted_by
                and self._facts.hold(_lasting(who, self._kept) + who.local_grads)
                and (not optimizer.zero_grads or self._overlap_alike(who.local_grads))
            )
        except _SILENT:
            return False

    def _overlap_alike(self, grads: list[Tensor]) -> bool:
        """Whether the same gradients share memory as before: those are not zeroed by a kernel."""
        addresses = list(map(Tensor.data_ptr, grads))
        if addresses != self._zeroed_at:
            if overlapping(grads) != self._overlapping:
                return False
            self._zeroed_at = addresses
        return True


def _are(objects: Collection[Any], others: list[Any]) -> bool:
    """Whether they are the same objects, in the same order."""
    return len(objects) == len(others) and all(map(is_, objects, others))


def _lasting(who: Participants, kept: list[Kept]) -> list[Tensor]:
    """The tensors that stay where they are from step to step, unless a user moves them.

    Raises:
        KeyError: one is missing.
    """
    states = list(chain.from_iterable(of_bucket.tensors() for of_bucket in kept))
    return who.local_params + locals_of(states)


def _sorted_by(optimizer: FusedStep, who: Participants) -> list[Any]:
    """Who takes part, what sorts them, and how what is split over ranks is split."""
    sharded = who.local_params is not who.params or who.local_grads is not who.grads
    return [
        who.in_groups,
        who.has_grad,
        [_sorting(optimizer, group) for group in optimizer.param_groups],
        _placements([*who.params, *who.grads]) if sharded else [],
    ]


def _placements(tensors: list[Any]) -> list[Any]:
    return [tensor.placements for tensor in tensors if is_dtensor(tensor)]


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
