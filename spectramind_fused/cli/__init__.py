"""The command line: `spectramind COMMAND [overrides]`, with Hydra's flags anywhere."""

from __future__ import annotations

import io
import os
import sys
import warnings
from importlib.util import find_spec

from spectramind_fused.cli.arguments import COMMANDS, Arguments, split_command
from spectramind_fused.training import interrupts, processes
from spectramind_fused.version import __version__

_USAGE = """usage: spectramind COMMAND [overrides] [Hydra's flags]

commands:
  train    train on spectra, as configs/train.yaml and the overrides say
  check    only check what `train` would be given, and print what it comes to
  doctor   which backends run here, why the others do not, versions, devices
  compare  tables and draws runs beside the first one, from their folders
  bench    what your shapes would gain: times steps beside torch's and other libraries'

examples:
  spectramind train optimizer=adamw optimizer.fused=true
  spectramind -m train optimizer=adamw,adam,sgd
  spectramind train experiment=optimizer_sweeps/adamw    a sweep, with a leaderboard
  spectramind check optimizer=sgd optimizer.lr=0.1
  spectramind compare outputs/multirun/DATE/TIME     a sweep's runs beside its first
  spectramind bench --model my.models:build
  spectramind train --help               the groups to choose from, and the config
  spectramind --version
  spectramind train --config-dir DIR     configs of your own, before ours of the same name
  eval "$(spectramind -sc install=bash)" tab completion; also fish and zsh
"""


def main(words: list[str] | None = None) -> None:
    """Entry point of `spectramind`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # shows what the terminal can
    try:
        with interrupts.raised():
            try:
                _main(sys.argv[1:] if words is None else words)
            except SystemExit:  # the usage ends so
                sys.stdout.flush()
                raise
            sys.stdout.flush()
    except interrupts.Interrupted as signal:
        if processes.is_first():
            told = f" {signal.told}" if signal.told else ""
            print(f"spectramind: interrupted{told}.", file=sys.stderr)
        sys.exit(signal.status)
    except BrokenPipeError:  # whoever read it, `head` for one, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _main(words: list[str]) -> None:
    warnings.formatwarning = _in_one_line
    command, rest = split_command(words)
    arguments = Arguments.of(rest)
    if "--version" in words:
        print(f"spectramind_fused {__version__}")
    elif arguments.completion:
        from spectramind_fused.cli import completion

        completion.run(arguments)
    elif command is None or (command == "doctor" and {"-h", "--help"} & set(rest)):
        _usage(rest)
    elif command == "doctor":
        from spectramind_fused.cli import doctor

        doctor.run(rest)
    elif command == "compare":
        from spectramind_fused.cli import compare

        compare.run(rest)
    elif command == "bench":
        from spectramind_fused.cli import bench

        bench.run(rest)
    else:
        _need_the_extra(command)
        from spectramind_fused.cli import runs

        (runs.train if command == "train" else runs.check)(arguments)


def _in_one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning without the line it came from; of a module, where new processes find it."""
    return f"warning: {message}\n"


def _usage(words: list[str]) -> None:
    asked = not words or "--help" in words or "-h" in words
    unknown = next((word for word in words if not word.startswith("-")), None)
    if unknown is not None:
        print(f"spectramind: {unknown!r} is no command.\n", file=sys.stderr)
    print(_USAGE, end="", file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


def _need_the_extra(command: str) -> None:
    if find_spec("lightning_fabric") is None:
        wanted = "pip install 'spectramind-fused[train]'"
        print(f"spectramind {command} needs lightning_fabric: {wanted}.", file=sys.stderr)
        sys.exit(2)


__all__ = ["COMMANDS", "main"]
