"""Whether the options of an optimizer are those of its last step: then nothing is read of them."""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any

from spectramind_fused.stepping.algorithm import Group

_UNCHANGEABLE = {int, float, bool, str, type(None)}
_NOT_OPTIONS = ("params", "param_names")


class GroupsSeen:
    """What the parameter groups held."""

    def __init__(self, groups: list[Group], max_norm: float | None) -> None:
        """Notes it.

        Args:
            groups: of the optimizer.
            max_norm: its `clip_grad_norm`.
        """
        self._groups = [[*group, *group.values()] for group in groups]
        self._max_norm = max_norm
        self._may_change = _may_change(max_norm) or any(
            _may_change(value)
            for group in groups
            for name, value in group.items()
            if name not in _NOT_OPTIONS
        )

    def same(self, groups: list[Group], max_norm: float | None) -> bool:
        """Whether they hold the same objects, which cannot have changed by themselves.

        A list of parameters is the same with others in it.
        """
        return (
            not self._may_change
            and max_norm is self._max_norm
            and len(groups) == len(self._groups)
            and all(map(_same, groups, self._groups))
        )


def _same(group: Group, held: list[Any]) -> bool:
    return 2 * len(group) == len(held) and all(map(is_, chain(group, group.values()), held))


def _may_change(value: Any) -> bool:
    if type(value) is tuple:
        return any(map(_may_change, value))
    return type(value) not in _UNCHANGEABLE
