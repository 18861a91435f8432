"""A bucket of parameters that one launch serves, with its tables and its gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.kernels import Backend
from spectramind_fused.multi_tensor import NOWHERE, Bucket, Reduction, Scaling, Tables
from spectramind_fused.multi_tensor.storages import AnyStorage, dtype_of, is_random
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.fingerprint import Kept, Look
from spectramind_fused.stepping.inputs import StepInputs
from spectramind_fused.stepping.options import Options
from spectramind_fused.stepping.refusals import bad_counter, check_gradient_memory
from spectramind_fused.stepping.rounding import Place
from spectramind_fused.stepping.rows import Row, Rows
from spectramind_fused.stepping.shards import Sharding, local
from spectramind_fused.stepping.state import counter_of, extras
from spectramind_fused.stepping.storage import EMA_WEIGHTS, PARAM, SLOW_WEIGHTS, keys_of
from spectramind_fused.stepping.tail import zero_grads


class Entry(NamedTuple):
    """A parameter that kernels serve.

    Attributes:
        position: in the list of all parameters that the plan can step.
        partial_row: the first of its partial sums.
        group: the index of its group.
        state: of the parameter.
        whole: the parameter, as the user holds it.
        whole_grad: its gradient, likewise.
        param: this rank's part of it, which a kernel steps.
        grad: likewise; or what stands for one that is not there, and has no memory.
        place: where that part is.
    """

    position: int
    partial_row: int
    group: int
    state: dict[str, Any]
    whole: Tensor
    whole_grad: Tensor
    param: Tensor
    grad: Tensor
    place: Place


class BucketKey(NamedTuple):
    """What all parameters of a bucket have in common.

    Attributes:
        device: where they are.
        sharding: how they are split over ranks.
        rule: the kernels' name of it.
        names: of the rule's states.
        numbers: names of what it keeps of a tensor beside them.
        storages: of every slot and number, by its name.
        seed: of the random bits that they draw; None where they draw none.
        in_eighths: whether every eight elements from the first on share a call of the generator.
        vectors: names of the states that rows and columns have.
    """

    device: torch.device
    sharding: Sharding
    rule: str
    names: tuple[str, ...]
    numbers: tuple[str, ...]
    storages: tuple[tuple[str, AnyStorage], ...]
    seed: int | None
    in_eighths: bool
    vectors: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        entry: Entry,
        group: Group,
        step: torch.dtype,
        rule: str,
        names: tuple[str, ...],
        numbers: tuple[str, ...],
        storages: dict[str, AnyStorage],
        vectors: tuple[str, ...] = (),
    ) -> BucketKey:
        """Of a parameter whose state is complete; `step` is the dtype of its counter."""
        found: dict[str, AnyStorage] = {PARAM: storages[PARAM]}
        found |= {"grad": entry.grad.dtype, "step": step}
        found |= {name: entry.state[name].dtype for name in (*numbers, *vectors)}
        for name in (*names, SLOW_WEIGHTS, EMA_WEIGHTS):  # weights it has not: what they would be
            found[name] = storages[name]
        draws = any(map(is_random, found.values()))
        place = entry.place
        return cls(
            entry.param.device,
            Sharding.of(entry.whole),
            rule,
            names,
            numbers,
            tuple(found.items()),
            Options.of(group).seed if draws else None,
            not draws or (place.offset % 8 == 0 and place.run >= entry.param.numel()),
            vectors,
        )


class PlannedBucket:
    """A bucket with its tables, and where its gradients stand in the list of all.

    A parameter without a gradient stays in the tables, and a step passes over it.

    Attributes:
        key: what its parameters have in common.
        tables: what its kernels are given.
    """

    def __init__(
        self,
        key: BucketKey,
        entries: list[Entry],
        algorithm: Algorithm,
        backend: Backend,
        inputs: StepInputs,
        zeroed_twice: set[int],
    ) -> None:
        """Builds the tables.

        Args:
            key: what the entries have in common.
            entries: the parameters; their states are complete.
            algorithm: how they are stepped.
            backend: serves them.
            inputs: of the step that is planned.
            zeroed_twice: positions of gradients that share memory with others, and are zeroed.
        """
        self.key = key
        self._algorithm = algorithm
        self._backend = backend
        self._whole = [e.whole for e in entries]
        self._params = [e.param for e in entries]
        self._positions = [e.position for e in entries]
        # Copied at every step: gradients that are negated or laid out unlike their parameter, and
        # gradients to be zeroed that share memory, as one could be zeroed before another is read.
        self._copies = {
            i: _buffer(e.param, e.grad)
            for i, e in enumerate(entries)
            if e.grad.numel() and (e.position in zeroed_twice or _lies_otherwise(e.grad, e.param))
        }
        self._has_grad: list[bool] = []  # who has one now; nothing in it: everyone
        # Bytes that a gradient reads at least; one that is copied may hold an element many times.
        sizes = [e.grad.numel() for e in entries]
        self._needed = [
            min(size, 1) if i in self._copies else size * e.grad.element_size()
            for i, (size, e) in enumerate(zip(sizes, entries, strict=True))
        ]
        self._states = [e.state for e in entries]
        self._steps = [counter_of(e.state, e.whole, inputs.counters) for e in entries]
        extras_of = [extras(inputs.groups[e.group]) for e in entries]
        counted = [("step",) if "step" in state else () for state in self._states]
        storages = dict(key.storages)
        self._names = [
            (*step, *key.numbers, *key.vectors, *_entries((PARAM, *key.names, *more), storages))
            for step, more in zip(counted, extras_of, strict=True)
        ]
        wanted = set().union(*extras_of)
        weights = [name for name in (SLOW_WEIGHTS, EMA_WEIGHTS) if name in wanted]
        self.tables = self._make_tables(entries, inputs, weights)

    def _make_tables(self, entries: list[Entry], inputs: StepInputs, weights: list[str]) -> Tables:
        """Those whose kernels read the gradients; `weights` of ours have a slot."""
        given = {
            PARAM: self._params,
            "grad": [e.grad for e in entries],
            "step": self._local_steps(),
        }
        names, storages = [*self.key.names, *weights], dict(self.key.storages)
        bucket = self._described(entries, self.key.rule, given, names, storages, inputs.zero_grads)
        return self._backend.tables(bucket)

    def _local_steps(self) -> list[Tensor]:
        return list(map(local, self._steps))

    def _described(
        self,
        entries: list[Entry],
        rule: str,
        given: dict[str, list[Tensor]],
        names: list[str],
        storages: dict[str, AnyStorage],
        zero_grads: bool,
    ) -> Bucket:
        """What a backend makes tables of.

        Args:
            entries: the parameters.
            rule: the kernels' name of it.
            given: the first slots.
            names: of the slots behind them: states, then weights.
            storages: of all slots and numbers.
            zero_grads: whether the gradients are zeroed.
        """
        slots, beside = dict(given), list[list[Tensor]]()
        for name in (PARAM, *names):
            rows = [
                [local(state.get(key, param)) for state, param in self._states_and_params()]
                for key in keys_of(name, storages[name])
            ]
            if name != PARAM:  # where a parameter has no such weights, its address stands there
                slots[name] = rows.pop(0)
            beside += rows
        return Bucket(
            rule=rule,
            states=len([name for name in names if name not in (SLOW_WEIGHTS, EMA_WEIGHTS)]),
            lookahead=SLOW_WEIGHTS in names,
            ema=EMA_WEIGHTS in names,
            zero_grads=zero_grads,
            slots=tuple(slots.values()),
            storages=tuple(map(storages.__getitem__, slots)),
            beside=tuple(beside),
            places=[(*e.place, self.key.seed or 0) for e in entries],
            in_eighths=self.key.in_eighths,
            numbers=tuple([local(s[name]) for s in self._states] for name in self.key.numbers),
            number_dtype=(
                dtype_of(storages[self.key.numbers[0]]) if self.key.numbers else torch.float32
            ),
            groups=[e.group for e in entries],
            partial_rows=[e.partial_row for e in entries],
        )

    def _states_and_params(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        return zip(self._states, self._params, strict=True)

    def check_counters(self) -> None:
        """Refuses step counters that are no numbers of steps, where looking costs no wait.

        Raises:
            ValueError: says which.
        """
        bad = self._backend.bad_counter(self._counting())
        if bad is not None:
            count = float(self._steps[bad])
            raise bad_counter(f"is {count:g}", self._whole[bad].shape)

    def _counting(self) -> Tables:
        """The tables that hold the step counters."""
        return self.tables

    def rows(self, rows: Rows) -> list[tuple[Tables, list[Row]]]:
        """The hyperparameters of its tables."""
        return [(self.tables, rows.of(self._algorithm))]

    def kept(self) -> Iterator[tuple[int, Kept]]:
        """What its kernels are given of each parameter, by its position in the plan."""
        rows = zip(self._positions, self._states, self._names, self._needed, strict=True)
        for i, (position, state, names, needed) in enumerate(rows):
            row = 0 if i in self._copies else self.tables.row_of_gradient(i)
            yield position, Kept(state, names, row, needed)

    def follow(self, look: Look) -> None:
        """Goes on with the gradients whose addresses a look has written down."""
        there = look.has_grad
        self._has_grad = [] if there is None else [bool(there[i]) for i in self._positions]
        moved = look.moved
        for i in self._copies:
            address = self._address(i, local(self._whole[i].grad))
            moved |= self.tables.set_gradient(i, address)
        self.tables.follow_gradients(moved)

    def point_at(self, grads: list[Any]) -> None:
        """Hands over the addresses of this step's gradients, which nobody has written down.

        Args:
            grads: of all parameters that the plan can step, this rank's parts; None of those
                that take no part.

        Raises:
            RuntimeError: one has no memory.
        """
        own = [grads[position] for position in self._positions]
        there = [grad is not None for grad in own]
        self._has_grad = [] if all(there) else there
        self.tables.set_gradients([self._address(i, grad) for i, grad in enumerate(own)])

    def _address(self, index: int, grad: Tensor | None) -> int:
        """Where the kernels find a gradient: of one that is copied, the copy."""
        if grad is None:
            return 0
        if not grad.numel():
            return NOWHERE
        check_gradient_memory(grad)
        if grad._is_zerotensor():  # zeros that torch has not allocated
            self._copies.setdefault(index, _buffer(self._params[index], grad))
        copy = self._copies.get(index)
        return grad.data_ptr() if copy is None else copy.copy_(grad).data_ptr()

    def norm(self, reductions: dict[torch.device, Reduction]) -> None:
        """Launches `norm`."""
        self._backend.norm(self.tables, reductions[self.tables.device])

    def sums(self, reduction: Reduction) -> Tensor:
        """What `advance` is to add up of this bucket's device."""
        return self._backend.sums(reduction)

    def step(
        self, reductions: dict[torch.device, Reduction], reduced: bool, scaling: Scaling
    ) -> None:
        """Launches `advance` and what follows it."""
        device = self.tables.device
        self._backend.advance(self.tables, reductions[device], reduced, scaling.on(device))
        self._step()

    def _step(self) -> None:
        """What follows `advance`."""
        self._backend.update(self.tables)

    def zero_copied(self) -> None:
        """Zeroes gradients that the kernels had copies of."""
        if self.tables.zero_grads:
            zero_grads([self._whole[i] for i in self._copies if self._whole[i].grad is not None])

    def written(self) -> list[Tensor]:
        """The parameters that a step writes to: of those who have a gradient now."""
        return list(compress(self._whole, self._has_grad)) if self._has_grad else self._whole

    @property
    def copies(self) -> int:
        """How many gradients are copied at every step."""
        return len(self._copies)

    def params(self) -> list[Tensor]:
        """Its parameters, this rank's parts."""
        return self._params

    def on_device(self) -> list[Tensor]:
        """Everything that a step of this bucket reads or writes beside parameters and states."""
        return [*self.tables.on_device(), *self._copies.values()]

    def describe(self) -> BucketDescription:
        """What tests and users may want to know of it."""
        return BucketDescription(self._backend.name, list(self._whole), self.tables)


class BucketDescription(NamedTuple):
    """One bucket of a plan.

    Attributes:
        backend: its name.
        params: the parameters, as the user holds them.
        tables: what the kernels are given; rule, device and dtypes among it.
        second: likewise of the second launches, where a step is made of whole matrices.
    """

    backend: str
    params: list[Tensor]
    tables: Tables
    second: Tables | None = None


def _entries(names: Iterable[str], storages: dict[str, AnyStorage]) -> Iterator[str]:
    """The entries of a state in which some slots are held."""
    return chain.from_iterable(keys_of(name, storages[name]) for name in names)


def _buffer(param: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(param, dtype=grad.dtype, memory_format=torch.preserve_format)


def _lies_otherwise(grad: Tensor, param: Tensor) -> bool:
    """Whether a walk over the parameter's memory does not meet the gradient's elements."""
    same = grad.stride() == param.stride() or (grad.is_contiguous() and param.is_contiguous())
    return not same or grad.is_neg()
