"""What a plan was built on, compared at every step: by a loop in C, where that can read it.

A kernel knows a tensor by its address. Torch lets a user move the memory of a tensor, or change how
it is read, while the object stays the same (`.data`, `set_`, `resize_`, `t_`, `swap_tensors`,
`share_memory_`). So tensors are compared by where they lie and how, not by identity.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from itertools import chain, compress
from operator import gt, is_
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from spectramind_fused.kernels.host import (
    LOST,
    MISSING,
    MOVED,
    NOT_WATCHED,
    OTHERS,
    OVERLAP,
    AskedFacts,
    Facts,
    Watched,
    agree,
    can_be_read,
)
from spectramind_fused.multi_tensor import overlapping
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.inputs import Members, Participants, StepInputs
from spectramind_fused.stepping.options import Options
from spectramind_fused.stepping.shards import is_dtensor, locals_of
from spectramind_fused.stepping.state import extras

# Errors of a tensor without memory or strides, of an entry that is no tensor, of a missing one.
_UNREADABLE = (RuntimeError, NotImplementedError, BufferError, TypeError, AttributeError, KeyError)


class Kept(NamedTuple):
    """What a plan steps with, of one of its parameters, beside the parameter itself.

    Attributes:
        state: of the parameter, or None.
        names: those of its entries.
        row: the address of an int64 that is to follow the address of the gradient; 0 for none.
        needed: bytes that the gradient must have; negative where that is looked at elsewhere.
    """

    state: dict[str, Any] | None
    names: tuple[str, ...]
    row: int = 0
    needed: int = -1

    def tensors(self) -> list[Tensor]:
        """The entries as they are now.

        Raises:
            KeyError: one is missing.
        """
        return [self.state[name] for name in self.names] if self.state is not None else []


class Look(NamedTuple):
    """What a step finds that its plan still fits.

    Attributes:
        moved: some gradients have other addresses than at the last step.
        others: others have a gradient than at the last step.
        pointed: the rows that follow the gradients' addresses do so already.
        has_grad: of each parameter that the plan can step; None where all have one.
        may_overlap: some gradients may share memory.
    """

    moved: bool
    others: bool
    pointed: bool
    has_grad: list[Any] | None
    may_overlap: bool = True


class Fingerprint:
    """Where parameters and states lie and how, and how gradients lie, where there are any.

    Also what sorts the parameters into buckets.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        inputs: StepInputs,
        participants: Participants,
        selectors: list[bool],
        members: Members,
        zeroed_twice: set[int],
        kept: list[Kept],
    ) -> None:
        """Records them.

        Args:
            algorithm: what the optimizer's class is.
            inputs: what a step brings.
            participants: everyone, in their groups.
            selectors: for each of them whether the plan can step it.
            members: those; each has a gradient, or one that stands for it.
            zeroed_twice: those whose gradients share memory with another's, and are zeroed.
            kept: what each of them is stepped with.
        """
        self._algorithm = algorithm
        self._sorted_by = _SortedBy.of(algorithm, inputs)
        self._selectors = selectors
        self._zeroed_at: deque[list[int]] = deque(maxlen=8)  # of the last sets of participants
        self._zeroed_twice = zeroed_twice
        seen: _Seen | None = None
        states = [inputs.state, *(of_one.state for of_one in kept)]
        if can_be_read(_lists(inputs), states, _everything(members, kept)):
            with suppress(BufferError, RuntimeError):  # of a device that DLPack has no number for
                seen = _SeenInC(inputs, participants, selectors, members, kept)
        self._seen = seen or _Asked(inputs, participants, selectors, members, kept)

    @classmethod
    def of(cls, *args: Any) -> Fingerprint | None:
        """As above; None where a tensor does not say where it lies, as some subclasses do not."""
        try:
            return cls(*args)
        except _UNREADABLE:
            return None

    def look(self, inputs: StepInputs) -> Look | None:
        """None if anything changed but contents, the addresses of gradients, and who has one."""
        try:
            if not self._sorted_alike(inputs):
                return None
            look = self._seen.look(inputs)
            if look is not None and look.may_overlap and inputs.zero_grads:
                grads = Participants.of(inputs.groups).chosen(self._selectors).local_grads
                return look if self._known_overlaps(grads) else None
            return look
        except _UNREADABLE:
            return None

    def _sorted_alike(self, inputs: StepInputs) -> bool:
        """Whether the parameters would be sorted into the same buckets."""
        if inputs.settled and self._sorted_by.zero_grads == inputs.zero_grads:
            return True
        return _SortedBy.of(self._algorithm, inputs) == self._sorted_by

    def _known_overlaps(self, grads: list[Any]) -> bool:
        """Whether no gradients share memory but those that did: a kernel does not zero those."""
        addresses = [grad is not None and grad.data_ptr() for grad in grads]
        if addresses not in self._zeroed_at:
            if not overlapping(grads) <= self._zeroed_twice:
                return False
            self._zeroed_at.append(addresses)
        return True


class _Seen(Protocol):
    """How tensors are looked at."""

    def look(self, inputs: StepInputs) -> Look | None:
        """As in `Fingerprint`; `inputs` are of the same groups, sorted alike."""


class _SeenInC:
    """By one loop in C."""

    def __init__(
        self,
        inputs: StepInputs,
        participants: Participants,
        selectors: list[bool],
        members: Members,
        kept: list[Kept],
    ) -> None:
        # A gradient that no kernel reads in its place has a row here.
        self._rows = array("q", bytes(8 * len(kept)))
        first = self._rows.buffer_info()[0]
        watched = (
            Watched(part, k.state, k.names, _splits(param, grad), k.row or first + 8 * i, k.needed)
            for i, (param, grad, part, k) in enumerate(
                zip(members.params, members.grads, members.local_grads, kept, strict=True)
            )
        )
        of_all = [next(watched) if selected else NOT_WATCHED for selected in selectors]
        self._selectors = selectors
        self._facts = Facts(_lists(inputs), inputs.state, of_all, participants.has_grad)

    def look(self, inputs: StepInputs) -> Look | None:
        lists = _lists(inputs)
        if not isinstance(inputs.state, dict) or {*map(type, lists)} - {list}:
            return None
        found = self._facts.compare(lists, inputs.state, inputs.zero_grads)
        if found <= 0:
            return None
        has_grad = None
        if found & MISSING:
            has_grad = list(compress(self._facts.has_grad, self._selectors))
        return Look(
            bool(found & MOVED),
            bool(found & OTHERS),
            not found & LOST,
            has_grad,
            bool(found & OVERLAP),
        )


class _Asked:
    """By asking Python."""

    def __init__(
        self,
        inputs: StepInputs,
        participants: Participants,
        selectors: list[bool],
        members: Members,
        kept: list[Kept],
    ) -> None:
        self._everyone, self._in_groups = participants.everyone, participants.in_groups
        self._selectors, self._has_grad = selectors, participants.has_grad
        self._holders, self._states = list(inputs.state), list(inputs.state.values())
        self._kept = kept
        self._sizes = [len(of_one.state or ()) for of_one in kept]
        self._placements = _placements(members)
        lasting = self._lasting(members)
        self._facts = AskedFacts(lasting + members.local_grads, len(lasting))

    def look(self, inputs: StepInputs) -> Look | None:
        participants, state = Participants.of(inputs.groups), inputs.state
        has_grad = participants.has_grad
        if not (
            same_objects(participants.everyone, self._everyone)
            and participants.in_groups == self._in_groups
            and not any(map(gt, has_grad, self._selectors))
            and same_objects(state, self._holders)
            and same_objects(state.values(), self._states)
            and [len(of_one.state or ()) for of_one in self._kept] == self._sizes
        ):
            return None
        members = participants.chosen(self._selectors)
        if not self._facts.hold(self._lasting(members) + members.local_grads) or not all(
            map(agree, _placements(members), self._placements)
        ):
            return None
        others, self._has_grad = has_grad != self._has_grad, has_grad
        there = [grad is not None for grad in members.grads]
        return Look(True, others, False, None if all(there) else there)

    def _lasting(self, members: Members) -> list[Any]:
        """The tensors that stay where they are from step to step, unless a user moves them."""
        states = list(chain.from_iterable(of_one.tensors() for of_one in self._kept))
        return members.local_params + locals_of(states)


def _lists(inputs: StepInputs) -> list[list[Tensor]]:
    return [group["params"] for group in inputs.groups]


def _everything(members: Members, kept: list[Kept]) -> list[Any]:
    states = chain.from_iterable(of_one.tensors() for of_one in kept)
    return [*members.params, *members.grads, *members.local_grads, *states]


def _splits(param: Any, grad: Any) -> list[Any] | None:
    """How a parameter and its gradient are split over ranks; None where they are whole."""
    if not is_dtensor(param) and not is_dtensor(grad):
        return None
    return [t._spec.placements if is_dtensor(t) else None for t in (param, grad)]


def same_objects(objects: Collection[Any], others: list[Any]) -> bool:
    """Whether they are the same objects, in the same order."""
    return len(objects) == len(others) and all(map(is_, objects, others))


def _placements(members: Members) -> list[Any]:
    """How what is split over ranks is split; None of a gradient that is not there."""
    if members.local_params is members.params and members.local_grads is members.grads:
        return []
    tensors = [*members.params, *members.grads]
    return [t.placements if is_dtensor(t) else t is not None or None for t in tensors]


class _SortedBy(NamedTuple):
    """What sorts the parameters into buckets.

    Attributes:
        zero_grads: whether gradients are zeroed.
        groups: of each group, what decides how its parameters are stepped.
    """

    zero_grads: bool
    groups: list[tuple[Any, ...]]

    @classmethod
    def of(cls, algorithm: Algorithm, inputs: StepInputs) -> _SortedBy:
        """As it is now."""
        return cls(inputs.zero_grads, [_sorting(algorithm, group) for group in inputs.groups])


def _sorting(algorithm: Algorithm, group: Group) -> tuple[Any, ...]:
    algorithm = algorithm.of_group(group)
    return (
        algorithm.rule_of(group),
        algorithm.states_of(group),
        extras(group),
        group.get("foreach"),
        group.get("differentiable"),
        group.get("capturable"),
        Options.of(group).of_storage(),
        algorithm.sorting_of(group),
    )
