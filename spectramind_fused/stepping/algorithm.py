"""What a class of optimizers is, as far as its step needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Group = dict[str, Any]  # a parameter group
Wanted = str | Callable[[Group], bool]  # an option that must be on, or a function that says so
ALWAYS = None  # the option of a state that every group holds
_SEVERAL = ("betas", "etas", "step_sizes")  # options that are several hyperparameters


@dataclass(frozen=True)
class Algorithm:
    """A rule of the kernels, and the torch class that is stepped where no kernel serves.

    Attributes:
        rule: the kernels' name of it; empty where they have none.
        rules_by_option: other rules, each by the option that selects it when it is on, or a
            function that says so.
        momenta: of rules that step by something made of whole matrices, the rule that makes what
            it is made of: that one has the states.
        states: every state there may be, in the order of the kernels' slots, each with the option
            that must be on for a group to hold it, or a function that says so, or `ALWAYS`.
        numbers: what the rule keeps of a tensor beside its states, in its order: 0-dim entries of
            the state.
        begins: what states and numbers are filled with at first, where that is not 0: a number, or
            the option that holds it, of the group if it is a hyperparameter, else of the defaults.
        hyperparameters: the options that the rule reads, in its order; `betas` are two.
        other_hyperparameters: those of other rules.
        squares: the states that are never negative; in 8 bits they are kept by their roots.
        keeps_moments: whether the states are means that may be kept in fewer bits; a function
            says so of a group.
        sparse_hint: what takes sparse gradients instead; empty where the torch class takes them.
        torch_counts_steps: whether the torch class keeps `step` in its state; a function says so of
            a group. If not, ours does only where Lookahead needs it.
        sorts_by: options beside these that decide who is stepped together.
        cls: our class.
        torch_class: the class that ours replaces.
    """

    rule: str = ""
    rules_by_option: Mapping[Wanted, str] = field(default_factory=dict)
    momenta: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, Wanted | None] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    begins: Mapping[str, str | float] = field(default_factory=dict)
    hyperparameters: tuple[str, ...] = ()
    other_hyperparameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    squares: tuple[str, ...] = ()
    keeps_moments: bool | Callable[[Group], bool] = True
    sparse_hint: str = ""
    torch_counts_steps: bool | Callable[[Group], bool] = True
    sorts_by: tuple[str, ...] = ()
    cls: type[torch.optim.Optimizer] = torch.optim.Optimizer
    torch_class: type[torch.optim.Optimizer] = torch.optim.Optimizer

    @property
    def name(self) -> str:
        """Of our class, for messages."""
        return self.cls.__name__

    @property
    def rules(self) -> set[str]:
        """Every rule that a group may ask for."""
        return {self.rule, *self.rules_by_option.values(), *self.momenta.values()} - {""}

    def rule_of(self, group: Group) -> str:
        """The rule that a group's options ask for."""
        chosen = (rule for wanted, rule in self.rules_by_option.items() if _holds(group, wanted))
        return next(chosen, self.rule)

    def counts_steps(self, group: Group) -> bool:
        """Whether the torch class keeps `step` in the state of a group's parameters."""
        counts = self.torch_counts_steps
        return counts(group) if callable(counts) else counts

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

    def row_of(self, group: Group, rule: str) -> tuple[Any, ...]:
        """A group's row of a rule's hyperparameter table, behind the columns common to all rules.

        Zeros where the group asks for another rule: nobody reads them.
        """
        own, row = self.rule_of(group), list[Any]()
        read = rule in (own, self.momenta.get(own))
        for name in self.other_hyperparameters.get(rule, self.hyperparameters):
            if name in _SEVERAL:
                row.extend(group[name] if read else (0, 0))
            else:
                row.append(group[name] if read else 0)
        return tuple(row)


def _holds(group: Group, wanted: Wanted | None) -> bool:
    if callable(wanted):
        return wanted(group)
    return wanted is ALWAYS or bool(group[wanted])
