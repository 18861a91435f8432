"""Collecting what is wrong with a config, so that one message can name it all."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

MOST_SEED = 2**63 - 1  # of torch's generators


def shown(value: Any) -> str:
    """A value for a message: of a long one only how it begins."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


class ConfigError(ValueError):
    """A config that cannot be used: the message lists everything wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        head = "This config cannot be used:" if len(problems) == 1 else "This config has problems:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in problems)]))

    def __reduce__(self) -> tuple[Any, ...]:  # by the problems: other processes raise it too
        return type(self), (self.problems,)


class RunError(RuntimeError):
    """What ended a run and is no bug of the program: the message is a sentence."""


class Section:
    """One mapping of a config, read key by key; what does not fit goes into `problems`.

    Args:
        path: where the mapping stands, for messages, such as "optimizer.lookahead".
        values: the mapping.
        problems: the list all sections of a config share.
    """

    def __init__(self, path: str, values: Any, problems: list[str]) -> None:
        self.path, self.problems = path, problems
        if not isinstance(values, Mapping):
            self.wrong("", f"should hold keys and values, not {shown(values)}")
            values = {}
        self.values: dict[Any, Any] = dict(values)

    def wrong(self, key: str, what: str) -> None:
        """Notes a problem with a key."""
        where = f"{self.path}.{key}" if key else self.path
        self.problems.append(f"{where} {what}{'' if what.endswith('?') else '.'}")

    def known(self, names: Iterable[str]) -> None:
        """Notes every key that is not among `names`, with the nearest that is."""
        names = list(names)
        for key in self.values:
            if key not in names:
                typed = key if isinstance(key, str) else shown(key)
                near = difflib.get_close_matches(typed, names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
                self.problems.append(f"{self.path}.{typed} is no known key: {hint}")

    def section(self, key: str) -> Section:
        """A mapping inside this one; an absent one is empty."""
        return Section(f"{self.path}.{key}", self.values.get(key, {}), self.problems)

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.wrong(key, f"should be true or false, not {shown(value)}")
            return default
        return value

    def text(self, key: str, default: str = "", choices: Iterable[str] = ()) -> str:
        """A string, one of `choices` where some are given."""
        value = self.values.get(key, default)
        choices = list(choices)
        if not isinstance(value, str) or (choices and value not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else "text"
            typed = value if isinstance(value, str) else shown(value)
            near = difflib.get_close_matches(typed, choices, n=1, cutoff=0.5)
            hint = f": did you mean {near[0]!r}?" if near else ""
            self.wrong(key, f"should be {wanted}, not {shown(value)}{hint}")
            return default
        return value

    def whole(self, key: str, default: int, least: int = 0, most: int = 2**31 - 1) -> int:
        """A whole number from `least` to `most`."""
        value = self.values.get(key, default)
        number = isinstance(value, int) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            bounds = (
                f"from {least} to {most}" if number and value > most else f"of at least {least}"
            )
            self.wrong(key, f"should be a whole number {bounds}, not {shown(value)}")
            return default
        return int(value)

    def number(
        self, key: str, default: float, least: float = 0.0, most: float = float("inf")
    ) -> float:
        """A finite number from `least` to `most`."""
        value = self.values.get(key, default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not least <= value <= min(most, sys.float_info.max):
            bounds = f" of at least {least:g}" if least > float("-inf") else ""
            bounds = bounds if most == float("inf") else f" from {least:g} to {most:g}"
            self.wrong(key, f"should be a number{bounds}, not {shown(value)}")
            return default
        return float(value)

    def on(self, key: str, off: tuple[Any, ...] = (None,)) -> bool:
        """Whether a key that may be switched off by one of `off` is set."""
        value = self.values.get(key, off[0])
        return not any(value is o or (value == o and type(value) is type(o)) for o in off)
