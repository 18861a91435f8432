"""What a class of optimizers is, as far as its step needs to know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import PRECISION

Group = dict[str, Any]  # a parameter group
Wanted = str | Callable[[Group], bool]  # an option that must be on, or a function that says so
ALWAYS = None  # the option of a state that every group holds
_SEVERAL = ("betas", "etas", "step_sizes")  # options that are several hyperparameters


@dataclass(frozen=True)
class Algorithm:
    """A rule of the kernels, and the torch class that is stepped where no kernel serves.

    Attributes:
        rule: the kernels' name of it; empty where they have none.
        rules_by_option: other rules, each by the option that selects it when it is on.
        momentum: where a step is made of whole matrices, what moves the states first, and says what
            it is made of: a rule with its hyperparameters.
        another: how some parameters are stepped; None: as all others.
        is_for_another: says which, by the parameter and its group.
        states: every state there may be, in the order of the kernels' slots, each with the option
            that must be on for a group to hold it, or a function that says so, or `ALWAYS`.
        numbers: what the rule keeps of a tensor beside its states, in its order: 0-dim entries of
            the state.
        begins: what states and numbers are filled with at first, where that is not 0: a number, or
            the option that holds it, of the group if it is a hyperparameter, else of the defaults.
        hyperparameters: the options that the rule reads, in its order; `betas` are two.
        vectors: states that have an element for each row, and for each column, of a matrix: the
            last two dimensions of a tensor.
        measured: whether the length of a step depends on a pass over everything that it reads.
        squares: the states that are never negative; in 8 bits they are kept by their roots.
        keeps_moments: whether the states are means that may be kept in fewer bits; a function
            says so of a group.
        sparse_hint: what takes sparse gradients instead; empty where the torch class takes them.
        takes_complex: whether the torch class takes complex parameters.
        maximizes: whether the torch class has an option `maximize`.
        torch_counts_steps: whether the torch class keeps `step` in its state. If not, ours does
            only where Lookahead needs it.
        sorts_by: options beside these that decide who is stepped together.
        beyond_torch: options that the torch class has not: a checkpoint may lack them.
        check: refuses a parameter, with its state, that a group cannot step; None: none.
        cls: our class.
        torch_class: the class that ours replaces.
    """

    rule: str = ""
    rules_by_option: Mapping[str, str] = field(default_factory=dict)
    momentum: Algorithm | None = None
    another: Algorithm | None = None
    is_for_another: Callable[[Tensor, Group], bool] | None = None
    states: Mapping[str, Wanted | None] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    begins: Mapping[str, str | float] = field(default_factory=dict)
    hyperparameters: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    measured: bool = False
    squares: tuple[str, ...] = ()
    keeps_moments: bool | Callable[[Group], bool] = True
    sparse_hint: str = ""
    takes_complex: bool = True
    maximizes: bool = True
    torch_counts_steps: bool = True
    sorts_by: tuple[str, ...] = ()
    beyond_torch: tuple[str, ...] = ()
    check: Callable[[Tensor, Group, dict[str, Any]], None] | None = None
    cls: type[torch.optim.Optimizer] = torch.optim.Optimizer
    torch_class: type[torch.optim.Optimizer] = torch.optim.Optimizer

    @property
    def name(self) -> str:
        """Of our class, for messages."""
        return self.cls.__name__

    @property
    def rules(self) -> set[str]:
        """Every rule that a group may ask for."""
        more = (of_one.rules for of_one in (self.momentum, self.another) if of_one is not None)
        return {self.rule, *self.rules_by_option.values()}.union(*more) - {""}

    @property
    def every_state(self) -> set[str]:
        """The states that a parameter may have, vectors aside."""
        return {*self.states, *(self.another.states if self.another else ())}

    def of(self, param: Tensor, group: Group) -> Algorithm:
        """How a parameter of a group is stepped."""
        if self.is_for_another is None or not self.is_for_another(param, group):
            return self
        return self._another

    def of_group(self, group: Group) -> Algorithm:
        """How the first parameter of a group is: all of them have the same options."""
        return self.of(group["params"][0], group) if group["params"] else self

    @cached_property
    def _another(self) -> Algorithm:
        assert self.another is not None
        return replace(self.another, check=self.check, cls=self.cls, torch_class=self.torch_class)

    def rule_of(self, group: Group) -> str:
        """The rule that a group's options ask for."""
        chosen = (rule for option, rule in self.rules_by_option.items() if group[option])
        return next(chosen, self.rule)

    def sorting_of(self, group: Group) -> list[Any]:
        """What options decide who is stepped together."""
        return [as_tuple(group.get(name)) for name in (*self.sorts_by, *self.beyond_torch)]

    def has_moments(self, group: Group) -> bool:
        """Whether a group's states are means that may be kept in fewer bits."""
        kept = self.keeps_moments
        return kept(group) if callable(kept) else kept

    def states_of(self, group: Group) -> tuple[str, ...]:
        """Names of the states that a group's options ask for."""
        return tuple(name for name, wanted in self.states.items() if _holds(group, wanted))

    def begin(self, name: str, group: Group, defaults: Group) -> float:
        """What a state or a number of a group's parameters is filled with at first."""
        value = self.begins.get(name, 0.0)
        if isinstance(value, str):
            value = (group if value in self.hyperparameters else defaults)[value]
        return float(value)

    def row_of(self, group: Group) -> tuple[Any, ...]:
        """A group's row of the hyperparameter table, behind the columns common to all rules."""
        row = list[Any]()
        for name in self.hyperparameters:
            value = group[name]
            if name == "eps" and isinstance(value, (tuple, list)):  # Adafactor's
                first, *others = value
                row.extend((PRECISION if first is None else first, *others))
            elif name in _SEVERAL:  # any sequence
                row.extend(value)
            else:
                row.append(value)
        return tuple(row)

    def row_of_others(self) -> tuple[float, ...]:
        """In the place of `row_of` of a group that another algorithm steps: nobody reads it."""
        return (0.0,) * (
            len(self.hyperparameters) + sum(n in _SEVERAL for n in self.hyperparameters)
        )

    def reads(self, other: Algorithm) -> bool:
        """Whether what this one steps has the hyperparameters of another."""
        own = [self.hyperparameters, *([self.momentum.hyperparameters] if self.momentum else [])]
        return other.hyperparameters in own


def as_tuple(value: Any) -> Any:
    """A list, or what is like one, as something that cannot change in its place."""
    if value is None or isinstance(value, (str, Tensor)) or not isinstance(value, Iterable):
        return value
    return tuple(value)


def _holds(group: Group, wanted: Wanted | None) -> bool:
    if callable(wanted):
        return wanted(group)
    return wanted is ALWAYS or bool(group[wanted])
