"""What a plan was built on. Compared at every step, so all of it runs at the speed of C.

A kernel knows a tensor by its address. Torch lets a user move the memory of a tensor, or change how
it is read, while the object stays the same (`.data`, `set_`, `resize_`, `t_`, `swap_tensors`,
`share_memory_`). So tensors are compared by where they lie and how, not by identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, compress
from operator import eq, is_, itemgetter, not_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import overlapping
from spectramind_fused.optim.shards import is_dtensor, locals_of
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
    """Parameters of one bucket, and which entries of their state its kernels are given."""

    def __init__(self, params: list[Tensor], names: list[tuple[str, ...]]) -> None:
        """As above; `names` are those of the entries, for each parameter."""
        self._params = params
        # The first once more: a tuple also of one.
        getters = {of_one: itemgetter(*of_one, of_one[0]) for of_one in set(names)}
        self._entries: list[Callable[[Any], Any]] = [getters[of_one] for of_one in names]

    def tensors(self, optimizer: FusedStep) -> Iterator[Tensor]:
        """The entries as they are now.

        Raises:
            KeyError, TypeError: one is missing.
        """
        states = map(optimizer.state.get, self._params)
        for entries, state in zip(self._entries, states, strict=True):
            yield from entries(state)


class Fingerprint:
    """Who takes part, where parameters and states lie and how, and how gradients lie.

    Also what sorts the parameters into buckets.
    """

    def __init__(self, optimizer: FusedStep, who: Participants, kept: list[Kept]) -> None:
        self._everyone = who.everyone
        self._kept = kept
        self._facts = list(_facts(optimizer, who, kept))
        self._zeroed_at: list[int] = []
        self._overlapping = overlapping(who.local_grads) if optimizer.zero_grads else set()

    def fits(self, optimizer: FusedStep, who: Participants) -> bool:
        """Whether nothing changed but contents, and the addresses of gradients."""
        if len(who.everyone) != len(self._everyone):
            return False
        if not all(map(is_, who.everyone, self._everyone)):
            return False
        try:
            if not all(map(eq, _facts(optimizer, who, self._kept), self._facts)):
                return False
            return not optimizer.zero_grads or self._overlap_alike(who.local_grads)
        except (KeyError, TypeError, AttributeError, RuntimeError):
            return False  # an entry is missing, is no tensor, has no memory or no strides

    def _overlap_alike(self, grads: list[Tensor]) -> bool:
        """Whether the same gradients share memory as before: those are not zeroed by a kernel."""
        addresses = list(map(Tensor.data_ptr, grads))
        if addresses != self._zeroed_at:
            if overlapping(grads) != self._overlapping:
                return False
            self._zeroed_at = addresses
        return True


def _facts(optimizer: FusedStep, who: Participants, kept: list[Kept]) -> Iterator[Any]:
    """Everything that is compared, one list after the other: none is kept longer than needed.

    Raises:
        KeyError, TypeError, AttributeError, RuntimeError: a tensor is missing or is not strided.
    """
    yield who.in_groups
    yield who.has_grad
    yield [_sorting(optimizer, group) for group in optimizer.param_groups]
    states = [tensor for of_bucket in kept for tensor in of_bucket.tensors(optimizer)]
    tensors = who.local_params + locals_of(states)
    yield list(map(Tensor.data_ptr, tensors))
    tensors += who.local_grads
    contiguous = list(map(Tensor.is_contiguous, tensors))
    yield contiguous
    yield list(map(Tensor.stride, compress(tensors, map(not_, contiguous))))
    for fact in (Tensor.size, _DTYPE, Tensor.get_device, Tensor.is_neg, type):
        yield list(map(fact, tensors))
    sharded = who.local_params is not who.params or who.local_grads is not who.grads
    yield _placements([*who.params, *who.grads]) if sharded else []


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
