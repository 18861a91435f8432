"""What a search draws from: Hydra's overrides read as Optuna's distributions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from optuna import Trial
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from spectramind_fused.config.check import ConfigError
from spectramind_fused.config.compose import parted
from spectramind_fused.config.overrides import forced

Distribution: TypeAlias = CategoricalDistribution | FloatDistribution | IntDistribution


@dataclass(frozen=True)
class Space:
    """The values that a run may be given.

    Attributes:
        always: what is drawn for every run, by key.
        given: what is drawn only beside one choice, by key and value of that choice.
        fixed: what every run is given, as typed.
    """

    always: dict[str, Distribution]
    given: dict[tuple[str, str], dict[str, Distribution]]
    fixed: list[str]

    @classmethod
    def of(cls, params: Any, words: list[str]) -> Space:
        """Reads the parameters of a search, and what was typed, which wins over them.

        Raises:
            ConfigError: nothing is to be drawn, or a value cannot be.
        """
        problems: list[str] = []
        every_run, beside = parted(params)
        typed = _read(words, problems)
        all_runs = _read(every_run, problems) | typed
        always = {key: d for key, d in all_runs.items() if isinstance(d, Distribution)}
        given = {}
        for choice, inner in beside.items():
            key, _, value = choice.partition("=")
            read = {k: d for k, d in _read(inner, problems).items() if k not in typed}
            for name in (n for n, d in read.items() if isinstance(d, str)):
                problems.append(f"hydra.sweeper.params: {name} beside {choice} should be a range.")
            if value not in getattr(always.get(key), "choices", [value] if key in typed else []):
                problems.append(f"hydra.sweeper.params: {choice} is none of the choices of {key}.")
            given[key, value] = {k: d for k, d in read.items() if isinstance(d, Distribution)}
        if not always and not any(given.values()):
            problems.append(
                "hydra.sweeper.params: nothing is to be drawn: add a range, such as "
                "optimizer.lr='tag(log,interval(1e-4,1e-2))'."
            )
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        return cls(always, given, [word for word in all_runs.values() if isinstance(word, str)])

    @property
    def cells(self) -> int | None:
        """How many combinations there are; None where they cannot be counted."""
        sizes = [len(self._values(d)) for d in self.always.values()]
        return None if any(self.given.values()) or 0 in sizes else prod(sizes)

    def grid(self) -> dict[str, list[Any]]:
        """The values of every key; of a space that has `cells`."""
        return {key: self._values(d) for key, d in self.always.items()}

    def draw(self, trial: Trial) -> list[str]:
        """Has a trial choose; returns the overrides of its run."""
        words = list(self.fixed)
        words += [forced(f"{k}={_suggested(trial, k, d)}") for k, d in self.always.items()]
        for choice, inner in self._beside():
            if choice in words:
                names = {key: f"{key} | {choice}" for key in inner}
                words += [
                    forced(f"{key}={_suggested(trial, names[key], d)}") for key, d in inner.items()
                ]
        return words

    def first(self) -> list[str]:
        """The overrides of a run with the first value of each."""
        firsts = {
            key: d.choices[0] if isinstance(d, CategoricalDistribution) else d.low
            for key, d in self.always.items()
        }
        return [*self.fixed, *(forced(f"{key}={value}") for key, value in firsts.items())]

    def described(self) -> dict[str, str]:
        """What is drawn, in words that can be compared."""
        described = {key: distribution_to_json(d) for key, d in self.always.items()}
        for choice, inner in self._beside():
            described |= {f"{key} | {choice}": distribution_to_json(d) for key, d in inner.items()}
        return described

    def _beside(self) -> list[tuple[str, dict[str, Distribution]]]:
        return [(f"{key}={value}", inner) for (key, value), inner in self.given.items()]

    @staticmethod
    def _values(distribution: Distribution) -> list[Any]:
        """All of them, of a choice or of a range; none of an interval."""
        if isinstance(distribution, CategoricalDistribution):
            return list(distribution.choices)
        low, high, step = distribution.low, distribution.high, distribution.step
        if distribution.log or not step:
            return []
        return [low + i * step for i in range(round((high - low) / step) + 1)]


def _read(words: list[str], problems: list[str]) -> dict[str, Distribution | str]:
    """Each key's distribution, or the word itself where there is nothing to draw."""
    read: dict[str, Distribution | str] = {}
    for word, override in zip(words, OverridesParser.create().parse_overrides(words), strict=True):
        key = override.get_key_element().lstrip("+")
        try:
            read[key] = _distribution(override) if override.is_sweep_override() else word
        except ValueError as error:
            problems.append(f"{key}: {error}")
    return read


def _distribution(override: Override) -> Distribution:
    """What an override draws from."""
    value: Any = override.value()
    if override.is_interval_sweep():
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    if override.is_range_sweep() and not value.shuffle:
        values: Any = sorted(override.sweep_iterator())
        kind = IntDistribution if all(isinstance(v, int) for v in values) else FloatDistribution
        return kind(values[0], values[-1], step=abs(value.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def written(value: Any) -> str:
    """A drawn value, as one would type it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _suggested(trial: Trial, name: str, distribution: Distribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return written(trial.suggest_categorical(name, distribution.choices))
    ends: Any = {key: getattr(distribution, key) for key in ("low", "high", "step", "log")}
    if isinstance(distribution, IntDistribution):
        return written(trial.suggest_int(name, **ends))
    return written(trial.suggest_float(name, **ends))
