"""The one JSON: what it is of, and the outcome of each phase as it ends."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import write
from benchmarks.gpu.runner import ROOT
from spectramind_fused.version import __version__

_PACKAGES = ("torch", "triton", "numpy", "pytest", "hypothesis")


class Record:
    """The file of a run; a later run of other phases adds to it."""

    def __init__(self, path: Path, played: bool, fresh: bool) -> None:
        """Begins a file, or goes on with one.

        Args:
            path: of the JSON.
            played: whether no GPU is measured.
            fresh: the run is of all phases: what an older one found is put aside.

        Raises:
            ValueError: the file is something else, or would mix what was played and measured.
        """
        self.path = path
        old = _read(path)
        if old is not None and old["played"] != played:
            kind = "was played" if old["played"] else "holds measurements"
            raise ValueError(f"{path} {kind}: give another file as --out.")
        if old is not None and fresh:
            path.replace(path.with_suffix(".previous.json"))
            old = None
        self.held: dict[str, Any] = old or {"played": played, "phases": {}}
        self.held |= {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": _commit(),
            "host": platform.platform(),
            "versions": _versions(),
        }

    def add(self, name: str, outcome: dict[str, Any]) -> None:
        """Writes the outcome of a phase, beside those that are there."""
        self.held["phases"][name] = {**outcome, "played": self.held["played"]}
        write(self.path, self.held)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        held = json.loads(path.read_text())
        return {"played": held["played"], "phases": dict(held["phases"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a result of this command: give another --out.") from None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "spectramind_fused": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str | None:
    """Of the sources, where git knows it; with a + where they were changed since."""
    try:
        words = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
