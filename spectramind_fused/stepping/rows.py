"""The hyperparameters of all groups, as rows of a bucket's table."""

from __future__ import annotations

from typing import Any

from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.options import Options

Row = tuple[Any, ...]


class Rows:
    """Rows of hyperparameters, one for each group: those common to all rules, then a rule's own."""

    def __init__(self, algorithm: Algorithm, groups: list[Group], max_norm: float | None) -> None:
        """Reads nothing yet.

        Args:
            algorithm: what the optimizer's class is.
            groups: of the optimizer.
            max_norm: its `clip_grad_norm`.
        """
        self._of_class, self._groups, self._max_norm = algorithm, groups, max_norm
        self._known: dict[str, list[Row]] = {}

    def of(self, algorithm: Algorithm) -> list[Row]:
        """The rows that the rule of an algorithm reads.

        Raises:
            KeyError: a group that it steps lacks an option.
        """
        if algorithm.rule not in self._known:
            self._known[algorithm.rule] = [
                (
                    algorithm.maximizes and group.get("maximize", False),
                    float("inf") if self._max_norm is None else self._max_norm,
                    *_of_tail(Options.of(group)),
                    *self._own(algorithm, group),
                )
                for group in self._groups
            ]
        return self._known[algorithm.rule]

    def _own(self, algorithm: Algorithm, group: Group) -> Row:
        try:
            return algorithm.row_of(group)
        except KeyError:
            if self._of_class.of_group(group).reads(algorithm):
                raise
            return algorithm.row_of_others()


def _of_tail(options: Options) -> Row:
    decay = -1 if options.ema_decay is None else options.ema_decay
    return options.lookahead_k, options.lookahead_alpha, decay
