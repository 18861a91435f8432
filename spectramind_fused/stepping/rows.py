"""The hyperparameters of all groups, as rows of a bucket's table."""

from __future__ import annotations

from typing import Any

from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.options import Options

Row = tuple[Any, ...]


class Rows:
    """Rows of hyperparameters, one for each group: those common to all rules, then a rule's own.

    Attributes:
        groups: of the optimizer.
    """

    def __init__(self, algorithm: Algorithm, groups: list[Group], max_norm: float | None) -> None:
        """Reads the common ones.

        Args:
            algorithm: what the optimizer's class is.
            groups: of the optimizer.
            max_norm: its `clip_grad_norm`.
        """
        self.groups = groups
        self._algorithm = algorithm
        self._common = [_common(algorithm, group, max_norm) for group in groups]
        self._of_rules: dict[str, list[Row]] = {}

    def of(self, rule: str) -> list[Row]:
        """The rows that a rule reads."""
        if rule not in self._of_rules:
            pairs = zip(self._common, self.groups, strict=True)
            self._of_rules[rule] = [
                (*common, *self._algorithm.row_of(group, rule)) for common, group in pairs
            ]
        return self._of_rules[rule]


def _common(algorithm: Algorithm, group: Group, max_norm: float | None) -> Row:
    options = Options.of(group)
    knows = algorithm.rule_of(group) not in algorithm.momenta  # torch's Muon has no maximize
    return (
        knows and group.get("maximize", False),
        float("inf") if max_norm is None else max_norm,
        options.lookahead_k,
        options.lookahead_alpha,
        -1 if options.ema_decay is None else options.ema_decay,
    )
