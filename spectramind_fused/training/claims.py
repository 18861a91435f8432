"""A run's folder is that of one run at a time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from spectramind_fused import files
from spectramind_fused.config.check import ConfigError

_held: list[FileLock] = []  # for as long as the process lives


class Claim(Callback):
    """Ends the program where another run writes to its folder, before Hydra writes anything there.

    Searches may share a folder: each of their runs has one of its own.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Claims the folder of a run."""
        _claim_or_end(Path(config.hydra.run.dir), "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Claims the folder of a sweep."""
        if "BasicSweeper" in config.hydra.sweeper.get("_target_", ""):
            _claim_or_end(Path(config.hydra.sweep.dir), "hydra.sweep.dir")


def claimed(folder: Path) -> bool:
    """Claims a folder, which is made if need be; whether no other process has."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", is_singleton=True)  # this process may have it already
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except NotImplementedError:  # a file system without locks
        return True
    _held.append(lock)
    return True


def _claim_or_end(folder: Path, key: str) -> None:
    """Ends the program, for of an Exception Hydra would make a warning."""
    try:
        free = claimed(folder)
    except OSError as error:
        print(f"spectramind: the run ended: {files.reason(error)}", file=sys.stderr)
        sys.exit(1)
    if not free:
        problem = f"{key}: another run is writing to {folder}: give another folder."
        print(ConfigError([problem]), file=sys.stderr)
        sys.exit(2)
