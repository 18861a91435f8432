"""The rules that the kernels have, in numbers: what goes into each and comes out of it.

csrc/ and Triton say the same, each in its own words. A library is compared with this when it is
loaded (`native.py`), Triton's functions and the classes of `optim` by the tests.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """How much a rule reads and leaves.

    Attributes:
        hyperparameters: columns of its own in the hyperparameter table.
        scalars: columns of its own in the scalar table.
        states: how many states it may hold.
    """

    hyperparameters: int
    scalars: int
    states: tuple[int, ...]


RULES = {
    "adam": Rule(6, 7, states=(2, 3)),
    "sgd": Rule(5, 6, states=(0, 1)),
    "rmsprop": Rule(5, 5, states=(1, 2)),
    "centered_rmsprop": Rule(5, 5, states=(2, 3)),
    "lion": Rule(4, 6, states=(1,)),
}

# Columns that come before a rule's own (csrc/tables.h).
COMMON_HYPERPARAMETERS = 5  # maximize, max norm, lookahead k, lookahead alpha, EMA decay
COMMON_SCALARS = 5  # grad factor, skip, sync, sync alpha, EMA weight
FIRST_STATE = 3  # the slot after parameter, gradient and step counter
MAX_SLOTS = 8


def rule_of(name: str, states: int) -> Rule:
    """The numbers of a rule.

    Raises:
        NotImplementedError: the kernels have no such rule, or not with so many states.
    """
    rule = RULES.get(name)
    if rule is None or states not in rule.states:
        raise NotImplementedError(
            f"The kernels have no rule {name!r} with {states} states: add it to RULES in "
            "kernels/rules.py, to csrc/update_rules.h and to kernels/triton/rules.py."
        )
    return rule
