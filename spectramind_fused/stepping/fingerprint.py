"""What a plan was built on. Compared at every step, so all of it runs at the speed of C.

A kernel knows a tensor by its address. Torch lets a user move the memory of a tensor, or change how
it is read, while the object stays the same (`.data`, `set_`, `resize_`, `t_`, `swap_tensors`,
`share_memory_`). So tensors are compared by where they lie and how, not by identity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import chain, compress
from operator import is_, itemgetter
from typing import Any, NamedTuple

from torch import Tensor

from spectramind_fused.kernels.host import Facts
from spectramind_fused.multi_tensor import overlapping
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.inputs import Members, Participants, StepInputs
from spectramind_fused.stepping.shards import is_dtensor, locals_of
from spectramind_fused.stepping.state import extras

# Errors of a tensor without memory or strides, of an entry that is no tensor, of a missing one.
_UNREADABLE = (RuntimeError, NotImplementedError, BufferError, TypeError, AttributeError, KeyError)


class StateEntries:
    """States of the parameters of one bucket, and which of their entries its kernels are given."""

    def __init__(self, states: list[dict[str, Any]], names: list[tuple[str, ...]]) -> None:
        """As above; `names` are those of the entries, for each state."""
        self._all = states
        self._sizes = list(map(len, states))
        self._states: dict[Callable[[Any], Any], list[dict[str, Any]]] = {}
        for of_one in filter(None, dict.fromkeys(names)):
            entries = itemgetter(*of_one, *of_one[:1])  # first key twice: one key gives no tuple
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
    """Where parameters and states lie and how, and how gradients lie, where there are any.

    Also what sorts the parameters into buckets.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        inputs: StepInputs,
        participants: Participants,
        members: Members,
        zeroed_twice: set[int],
        kept: list[StateEntries],
    ) -> None:
        """Records them.

        Args:
            algorithm: what the optimizer's class is.
            inputs: what a step brings.
            participants: everyone, in their groups.
            members: whom the plan can step; each has a gradient, or one that stands for it.
            zeroed_twice: those whose gradients share memory with another's, and are zeroed.
            kept: the states that are stepped with.
        """
        self._algorithm = algorithm
        self._everyone, self._in_groups = participants.everyone, participants.in_groups
        self._holders, self._states = list(inputs.state), list(inputs.state.values())
        self._kept = kept
        self._sorted_by = _SortedBy.of(algorithm, inputs)
        self._placements = _placements(members)
        lasting = _lasting(members, kept)
        self._facts = Facts(lasting + members.local_grads, len(lasting))
        self._zeroed_at: deque[list[int]] = deque(maxlen=8)  # of the last sets of participants
        self._zeroed_twice = zeroed_twice

    @classmethod
    def of(
        cls,
        algorithm: Algorithm,
        inputs: StepInputs,
        participants: Participants,
        members: Members,
        zeroed_twice: set[int],
        kept: list[StateEntries],
    ) -> Fingerprint | None:
        """As above; None where a tensor does not say where it lies, as some subclasses do not."""
        try:
            return cls(algorithm, inputs, participants, members, zeroed_twice, kept)
        except _UNREADABLE:
            return None

    def fits(self, inputs: StepInputs, participants: Participants, members: Members) -> bool:
        """Whether nothing changed but contents, the addresses of gradients, and who has one."""
        state = inputs.state
        try:
            return (
                same_objects(participants.everyone, self._everyone)
                and participants.in_groups == self._in_groups
                and same_objects(state, self._holders)
                and same_objects(state.values(), self._states)
                and all(of_bucket.complete() for of_bucket in self._kept)
                and _SortedBy.of(self._algorithm, inputs) == self._sorted_by
                and self._facts.hold(_lasting(members, self._kept) + members.local_grads)
                and all(map(_agree, _placements(members), self._placements))
                and (not inputs.zero_grads or self._known_overlaps(members.local_grads))
            )
        except _UNREADABLE:
            return False

    def _known_overlaps(self, grads: list[Any]) -> bool:
        """Whether no gradients share memory but those that did: a kernel does not zero those."""
        addresses = [grad is not None and grad.data_ptr() for grad in grads]
        if addresses not in self._zeroed_at:
            if not overlapping(grads) <= self._zeroed_twice:
                return False
            self._zeroed_at.append(addresses)
        return True


def same_objects(objects: Collection[Any], others: list[Any]) -> bool:
    """Whether they are the same objects, in the same order."""
    return len(objects) == len(others) and all(map(is_, objects, others))


def _lasting(members: Members, kept: list[StateEntries]) -> list[Any]:
    """The tensors that stay where they are from step to step, unless a user moves them.

    Raises:
        KeyError: one is missing.
    """
    states = list(chain.from_iterable(of_bucket.tensors() for of_bucket in kept))
    return members.local_params + locals_of(states)


def _placements(members: Members) -> list[Any]:
    """How what is split over ranks is split; None of a gradient that is not there."""
    if members.local_params is members.params and members.local_grads is members.grads:
        return []
    tensors = [*members.params, *members.grads]
    return [t.placements if is_dtensor(t) else t is not None or None for t in tensors]


def _agree(placements: Any, known: Any) -> bool:
    return placements is None or bool(placements == known)


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
    return (
        algorithm.rule_of(group),
        algorithm.states_of(group),
        extras(group),
        group.get("foreach"),
        group.get("differentiable"),
        group.get("capturable"),
    )
