"""The command line: `spectramind train [overrides]`, with Hydra's flags anywhere."""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from spectramind_fused.config.check import ConfigError
from spectramind_fused.config.compose import composed, forced

_USAGE = """usage: spectramind COMMAND [overrides] [Hydra's flags]

commands:
  train    train on spectra, as configs/train.yaml and the overrides say

examples:
  spectramind train optimizer=adamw optimizer.fused=true
  spectramind -m train optimizer=adamw,adam,sgd
  spectramind train --help       the groups to choose from, and the config
"""
_COMMANDS = ("train",)
# Hydra's flags that take a value; the others stand alone.
_VALUED = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
           "--config-dir", "-cd", "--experimental-rerun")  # fmt: skip
# Flags that only show something.
_SHOWING = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i",
            "--shell-completion", "-sc")  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `spectramind`."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    command, rest = split_command(sys.argv[1:] if arguments is None else arguments)
    if command is None:
        asked = not rest or "--help" in rest or "-h" in rest
        unknown = next((word for word in rest if not word.startswith("-")), None)
        if unknown is not None:
            print(f"spectramind: {unknown!r} is no command.\n", file=sys.stderr)
        print(_USAGE, end="", file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    missing = [module for module in ("lightning_fabric", "numpy") if find_spec(module) is None]
    if missing:
        wanted = "pip install 'spectramind-fused[train]'"
        print(f"spectramind train needs {' and '.join(missing)}: {wanted}.", file=sys.stderr)
        sys.exit(2)
    flags, overrides = flags_and_overrides(rest)
    overrides = [forced(override) for override in overrides]
    if not any(flag.split("=")[0] in _SHOWING for flag in flags):
        _check(command, flags, overrides)
    sys.argv = ["spectramind", *flags, *overrides]
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=command)(_train)()


def config_folder() -> Path:
    """Where the packaged configs lie: in the wheel, or beside the package in a source tree."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def split_command(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Takes the first command word out, wherever it stands."""
    for i, argument in enumerate(arguments):
        if argument in _COMMANDS:
            return argument, arguments[:i] + arguments[i + 1 :]
    return None, arguments


def flags_and_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Parts dashed flags, with their values, from overrides: Hydra wants the flags first."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        flags.append(argument)
        if argument in _VALUED:
            flags += [value for value in [next(rest, None)] if value is not None]
    return flags, overrides


def _check(command: str, flags: list[str], overrides: list[str]) -> None:
    """Says everything wrong with the config before Hydra, whose hints mislead, says anything."""
    from spectramind_fused.training.settings import parse_run

    valued = dict(pairwise(flags)) | dict(flag.split("=", 1) for flag in flags if "=" in flag)
    search = [str(Path(valued[f]).absolute()) for f in ("--config-dir", "-cd") if f in valued]
    name = valued.get("--config-name", valued.get("-cn", command))
    sweep = bool({"-m", "--multirun"} & set(flags))
    try:
        for config in composed(config_folder(), name, overrides, search, sweep):
            parse_run(config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _train(config: DictConfig) -> float:
    from spectramind_fused.training.loop import train  # Fabric takes a second to import

    OmegaConf.set_struct(config, True)
    runtime = HydraConfig.get()
    words = [override.removeprefix("++") for override in runtime.overrides.task]  # as typed
    try:
        return train(config, Path(runtime.runtime.output_dir), words)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
