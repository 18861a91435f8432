"""Composing configs as Hydra will, so that they can be checked before Hydra speaks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from spectramind_fused.config import limits
from spectramind_fused.config.check import ConfigError
from spectramind_fused.config.overrides import forced
from spectramind_fused.config.packaged import packaged_configs

# The sweeper that draws values, as Hydra knows it.
SEARCH = "hydra_plugins.spectramind_fused.Search"


class Job(NamedTuple):
    """One config that a command line stands for.

    Attributes:
        config: without Hydra's own section.
        folder: where the run, or the sweep, is going to write.
        sweeps: whether it is one of many.
        sweeper: what Hydra's sweeper is told, if there is to be a sweep.
    """

    config: DictConfig
    folder: Path
    sweeps: bool
    sweeper: DictConfig

    @property
    def searches(self) -> bool:
        """Whether our sweeper draws its values."""
        return self.sweeps and self.sweeper.get("_target_") == SEARCH

    @property
    def of_grid(self) -> bool:
        """Whether it is one of every combination."""
        return self.sweeps and "BasicSweeper" in self.sweeper.get("_target_", "")


class PackagedConfigs(SearchPathPlugin):  # type: ignore[misc]
    """Lets Hydra find our configs behind those of the user, whose files of the same name win."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends our folder."""
        search_path.append("spectramind_fused", f"file://{packaged_configs()}")


Plugins.instance().register(PackagedConfigs)


def composed(folder: Path, name: str, overrides: list[str], sweep: bool = False) -> Iterator[Job]:
    """The configs a command line stands for; of a sweep, each value once, of an interval its ends.

    Args:
        folder: where configs are looked for, before ours.
        name: the root config.
        overrides: as given to Hydra.
        sweep: whether commas separate values, as with -m; a config may ask for it too.

    Raises:
        ConfigError: an override cannot be read, or the config cannot be composed; after the jobs,
            where only overrides of unknown keys had to be left out.
    """
    if not folder.is_dir():
        raise ConfigError([f"--config-dir {folder} is no folder: give one that holds configs"])
    if folder != packaged_configs() and (large := limits.too_large(folder)):
        raise ConfigError(large)
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            unknown: list[str] = []
            absent: list[str] = []
            overrides, job, swept = _of_known_keys(name, overrides, sweep, unknown, absent)
            first, *_ = _jobs(overrides)
            known = {*_groups(folder), *map(str, job.config)}
            problems = [*absent, *(_unknown(key, known) for key in unknown)]
            if absent:  # the rest is not to be judged by another choice
                raise ConfigError(problems)
            outside = [*limits.of_the_environment(job.config), *limits.too_long(job.config)]
            if outside:
                raise ConfigError([*problems, *outside])
            if not job.sweeps:
                yield job if first == overrides else _composed(name, overrides, False)[0]
            else:
                for params in swept:
                    for of_one in _jobs([*params, *overrides]):
                        yield _composed(name, of_one, True)[0]
                if job.of_grid:
                    problems += _intervals([*swept[0], *overrides])
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError(["the config is nested too deep: no key needs that."]) from error
    except AssertionError as error:  # of Hydra's, where a key has no name
        words = " ".join(overrides)
        raise ConfigError([f"{words}: Hydra cannot read that: give KEY=VALUE for each."]) from error
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError([_message(error)]) from error
    if problems:
        raise ConfigError(problems)


def _of_known_keys(
    name: str, overrides: list[str], sweep: bool, unknown: list[str], absent: list[str]
) -> tuple[list[str], Job, list[list[str]]]:
    """Leaves out what Hydra stops at, so that the rest can be checked too.

    Args:
        name: the root config.
        overrides: as given to Hydra.
        sweep: whether one was asked for.
        unknown: is given the keys that nothing has.
        absent: is given what Hydra says of choices that do not exist.

    Returns:
        The other overrides, and what `_composed` makes of their first job.
    """
    while True:
        first, *_ = _jobs(overrides)
        try:
            return overrides, *_composed(name, first, sweep)
        except HydraException as error:
            key = re.match(r"Could not override '([\w/]+)'", str(error))
            choice = re.search(r"Could not find '([\w/]+)/[^/']+'", str(error))
            found = key or choice
            at_fault = found[1] if found else ""
            others = [word for word in overrides if _key(word) != at_fault]
            if len(others) == len(overrides):
                raise
            unknown += [at_fault] if key else []
            absent += [] if key else [_message(error)]
            overrides = others


def _message(error: Exception) -> str:
    """What Hydra says, without our folders."""
    said = str(error).split("Config search path")[0]
    if not said.strip():  # Hydra passes on errors that have no words, such as those of a key `?`
        why = error.__cause__ or error.__context__ or error
        said = f"a config cannot be read: {str(why).strip() or type(why).__name__}."
    launcher = re.search(r"Could not find '(hydra/launcher)/((joblib|submitit)\w*)'", said)
    if launcher:
        wanted = "pip install 'spectramind-fused[sweep]'"
        return f"{launcher[1]}={launcher[2]} needs hydra-{launcher[3]}-launcher: {wanted}."
    if "To append to your config" in said:  # where nothing would read it
        said = f"{said.split('To append')[0].strip()[:-1]}: there is no such key."
    return re.sub(r"\n+", "\n    ", said.strip())


def _key(override: str) -> str:
    return str(OverridesParser.create().parse_override(override).key_or_group)


def _groups(folder: Path) -> list[str]:
    """Config groups, of the user and of ours."""
    return [p.name for f in (folder, packaged_configs()) for p in f.iterdir() if p.is_dir()]


def _unknown(key: str, known: set[str]) -> str:
    if key in known:
        return f"{key} is a group that these configs do not use, unless another choice does."
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
    return f"{key} is no known key or group: {hint}"


def _composed(name: str, overrides: list[str], sweep: bool) -> tuple[Job, list[list[str]]]:
    """A job, and what the config itself sweeps over: overrides, once for each condition on some."""
    config = compose(name, overrides=overrides, return_hydra_config=True)
    hydra = config.hydra
    sweeps = sweep or hydra.mode == RunMode.MULTIRUN
    folder = Path(hydra.sweep.dir if sweeps else hydra.run.dir)
    rest = [str(key) for key in config if key != "hydra"]
    job = Job(OmegaConf.masked_copy(config, rest), folder, sweeps, hydra.sweeper)
    always, given = parted(hydra.sweeper.params) if job.searches else ([], {})
    if job.of_grid:
        always = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
    return job, [always, *([*always, choice, *words] for choice, words in given.items())]


def parted(params: Any) -> tuple[list[str], dict[str, list[str]]]:
    """A search's parameters as overrides: those of every run, and those beside one choice.

    Args:
        params: keys with values; under a choice, such as `optimizer=sgd`, a mapping of them.
    """
    params = OmegaConf.to_container(params) if OmegaConf.is_config(params) else params or {}
    always = {key: value for key, value in params.items() if not isinstance(value, dict)}
    given = {key: value for key, value in params.items() if isinstance(value, dict)}
    return _words(always), {choice: _words(inner) for choice, inner in given.items()}


def _words(params: dict[str, Any]) -> list[str]:
    return [forced(f"{key}={value}") for key, value in params.items()]


def _intervals(overrides: list[str]) -> list[str]:
    """What is wrong with intervals in a grid."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [
        f"{each.get_key_element().lstrip('+')} is drawn from an interval, which a grid cannot: add "
        "hydra/sweeper=search."
        for each in parsed
        if each.is_interval_sweep()
    ]


def _jobs(overrides: list[str]) -> Iterator[list[str]]:
    """One job with the first value of every sweep, then one for each other value."""
    first: list[str] = []
    others: list[tuple[int, str]] = []
    for override, typed in zip(
        OverridesParser.create().parse_overrides(overrides), overrides, strict=True
    ):
        if not override.is_sweep_override():
            first.append(typed)
            continue
        if override.is_interval_sweep():
            interval: Any = override.value()
            drawn = [str(interval.start), str(interval.end)]
        else:
            drawn = list(override.sweep_string_iterator())
        values = [f"{override.get_key_element()}={value}" for value in drawn]
        others += [(len(first), value) for value in values[1:]]
        first.append(values[0])
    yield first
    for i, value in others:
        yield [*first[:i], value, *first[i + 1 :]]
