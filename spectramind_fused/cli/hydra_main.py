"""Hydra's way in, on every Python."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from spectramind_fused import files


def start(folder: Path, name: str, task: Callable[[DictConfig], Any]) -> None:
    """Lets Hydra compose what sys.argv asks for, and run the task with it.

    Args:
        folder: of the configs.
        name: of the config.
        task: is given what was composed.
    """
    _let_help_be_lazy()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra shows errors in its own way
    try:
        hydra.main(version_base="1.3", config_path=str(folder), config_name=name)(task)()
    except BrokenPipeError:
        raise
    except OSError as error:  # of what Hydra writes itself
        print(f"spectramind: the run ended: {files.reason(error)}", file=sys.stderr)
        sys.exit(1)
    except HydraException as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def _let_help_be_lazy() -> None:
    """Since Python 3.14 argparse reads each help; one of Hydra 1.3's is no string until printed."""
    check: Callable[..., None] | None = getattr(argparse.ArgumentParser, "_check_help", None)
    if check is None:
        return

    def check_strings(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
        if isinstance(action.help, str):
            check(parser, action)

    setattr(argparse.ArgumentParser, "_check_help", check_strings)  # noqa: B010  (unknown to mypy)
