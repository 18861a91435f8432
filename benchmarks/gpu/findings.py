"""JSON that is whole at any moment: what a phase has found so far, and all phases' outcomes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from benchmarks.gpu.runner import ROOT


def write(path: Path, value: Any) -> None:
    """Writes JSON in one piece: whoever reads sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f"{path.name}.{os.getpid()}.new")
    with whole.open("w") as file:
        json.dump(_plain(value), file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(whole, path)


def _plain(value: Any) -> Any:
    """What is no number is null, for JSON has no NaN; files of ours are named from our folder."""
    if isinstance(value, dict):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    if isinstance(value, str):
        return value.replace(f"{ROOT}{os.sep}", "")
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Findings:
    """What a phase has found so far, on disk after every addition.

    Attributes:
        held: the findings by name, and "problems", a list of sentences.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.held: dict[str, Any] = {"problems": []}

    def set(self, **found: Any) -> None:
        """Keeps findings, in the place of those of the same name."""
        self.held |= found
        write(self._path, self.held)

    def add(self, name: str, found: Any) -> None:
        """Appends to a list of findings."""
        self.set(**{name: [*self.held.get(name, []), found]})

    def problem(self, sentence: str) -> None:
        """Something is wrong: the phase goes on and will have failed."""
        self.add("problems", sentence)
