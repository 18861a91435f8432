"""Composing configs as Hydra will, so that they can be checked before Hydra speaks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from spectramind_fused.config.check import ConfigError


def forced(override: str) -> str:
    """Lets a dotted override set a key that its YAML leaves out: our checks know which exist."""
    dotted = re.match(r"[A-Za-z_]\w*\.[^=]+=", override)
    return f"++{override}" if dotted and not override.startswith("hydra.") else override


def composed(
    folder: Path, name: str, overrides: list[str], search: list[str], sweep: bool
) -> Iterator[DictConfig]:
    """The configs a command line stands for; of a sweep, each value once.

    Args:
        folder: the packaged configs.
        name: the root config.
        overrides: as given to Hydra.
        search: folders given by --config-dir.
        sweep: whether commas separate values, as with -m.

    Raises:
        ConfigError: an override cannot be read, or the config cannot be composed.
    """
    extra = [f"hydra.searchpath=[{','.join('file://' + s for s in search)}]"] if search else []
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            for job in _jobs(overrides) if sweep else [overrides]:
                yield compose(name, overrides=[*job, *extra])
    except HydraException as error:
        told = str(error).split("Config search path")[0]  # of no use to who made a typo
        raise ConfigError([re.sub(r"\n+", "\n    ", told.strip())]) from error


def _jobs(overrides: list[str]) -> Iterator[list[str]]:
    """One job with the first value of every sweep, then one for each other value."""
    first: list[str] = []
    others: list[tuple[int, str]] = []
    for i, override in enumerate(OverridesParser.create().parse_overrides(overrides)):
        if not override.is_sweep_override():
            first.append(overrides[i])
            continue
        values = [f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()]
        first.append(values[0])
        others += [(i, value) for value in values[1:]]
    yield first
    for i, value in others:
        yield [*first[:i], value, *first[i + 1 :]]
