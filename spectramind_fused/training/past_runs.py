"""What runs left in their folders, read back. Needs neither torch nor the data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from spectramind_fused.config.overrides import flat
from spectramind_fused.training.tables import complete_rows


class PastRun:
    """A run as far as it came. What it did not leave is empty.

    Args:
        folder: where it left its files, each of which is read when it is asked for.

    Raises:
        ValueError: whoever asks for what stands in a file that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def overrides(self) -> dict[str, str]:
        """What was typed, by key."""
        typed = _yaml(self.folder / ".hydra" / "overrides.yaml") or []
        words = [str(word).lstrip("+").partition("=") for word in typed]
        return {key: value for key, _, value in words}

    @cached_property
    def choices(self) -> dict[str, Any]:
        """What each config group was set to."""
        return _at(_yaml(self.folder / ".hydra" / "hydra.yaml"), "hydra", "runtime", "choices")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole config, by dotted key."""
        return flat(_yaml(self.folder / ".hydra" / "config.yaml") or {})

    @cached_property
    def record(self) -> dict[str, Any]:
        """What `optimizer.json` holds."""
        return _json(self.folder / "optimizer.json") or {}

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """What `result.json` holds; None where the run did not end."""
        return _json(self.folder / "result.json")

    @cached_property
    def history(self) -> dict[int, float]:
        """The val/gll of each epoch, counted from 1."""
        return _history(self.folder / "history.csv")

    @property
    def score(self) -> float:
        """The last val/gll; nan where the run diverged or did not end."""
        return math.nan if self.result is None else float(self.result.get("val/gll", math.nan))

    @property
    def pruned(self) -> str:
        """After which epoch a search stopped it; empty where none did."""
        epoch = (self.result or {}).get("pruned after epoch")
        return "" if epoch is None else f"after epoch {epoch}"

    @property
    def outcome(self) -> str:
        """Empty for a run that went to its end; else "diverged", "pruned" or "did not end"."""
        if self.result is None:
            return "did not end"
        if not math.isfinite(self.score):
            return "diverged"
        return "pruned" if self.pruned else ""

    @property
    def fate(self) -> str:
        """The outcome, with the epoch."""
        if self.outcome == "did not end":
            planned = self.config.get("training.epochs", "?")
            return f"did not end: {max(self.history, default=0)} of {planned} epochs"
        if self.outcome == "pruned":
            return f"pruned {self.pruned}"
        bad = [e for e, score in self.history.items() if not math.isfinite(score)]
        return f"diverged in epoch {min(bad)}" if self.outcome and bad else self.outcome

    @property
    def config_hash(self) -> str:
        """The first digits of the hash of its optimizer section."""
        return str(self.record.get("config_hash", ""))[:12]

    def calibration(self, name: str) -> float:
        """A figure of its calibration; nan where it has none: what diverged lies within nothing."""
        if self.result is None or not math.isfinite(self.score):
            return math.nan
        return float(self.result.get("calibration", {}).get(name, math.nan))

    @property
    def device(self) -> str:
        """What it trained on; empty where that was not recorded."""
        return str((self.result or {}).get("timing", {}).get("device", ""))

    @property
    def ms_per_step(self) -> float:
        """The wall time of a training step; nan where none was recorded."""
        return float((self.result or {}).get("timing", {}).get("ms per step") or math.nan)

    def value(self, key: str) -> str:
        """What a key of an override stands at in this run, typed or not."""
        if key in self.overrides:
            return self.overrides[key]
        found = self.choices.get(key, self.config.get(key, ""))
        return "null" if found is None else str(found)


def inside(folder: Path) -> list[PastRun]:
    """The runs in and below a folder, in the order of their numbers or names."""
    found = (path.parents[1] for path in folder.rglob(".hydra/overrides.yaml"))
    return list(map(PastRun, sorted(found, key=_natural)))


def varied(runs: Sequence[PastRun]) -> list[str]:
    """The keys typed for one of the runs that do not have the same value in all of them."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    return [key for key in keys if len({_meant(run.value(key)) for run in runs}) > 1]


def _meant(value: str) -> str | float:
    """What is typed as 3e-4 is 0.0003."""
    try:
        return float(value)
    except ValueError:
        return value


def rank(run: PastRun) -> tuple[bool, bool, float]:
    """Sorts the best first, then what a search pruned; what diverged or did not end comes last."""
    lost = math.isnan(run.score)
    return lost, bool(run.pruned), 0.0 if lost else run.score


def _history(path: Path) -> dict[int, float]:
    """A run that begins or goes on in the folder of another takes the place of its epochs."""
    history: dict[int, float] = {}
    for row in complete_rows(path):
        try:
            epoch, score = int(row["epoch"]), float(row["val/gll"])
        except (KeyError, ValueError):  # a line that somebody else wrote
            continue
        history = {e: s for e, s in history.items() if e < epoch} | {epoch: score}
    return history


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(_unreadable(path, error)) from error
    if not isinstance(content, dict):
        raise ValueError(_unreadable(path, "it holds no keys"))
    return content


def _yaml(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        content = OmegaConf.load(path)
        try:
            return OmegaConf.to_container(content, resolve=True)
        except OmegaConfBaseException:  # it asks for what only Hydra, or that machine, knows
            return OmegaConf.to_container(content)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, why: object) -> str:
    return f"{path} cannot be read ({str(why).splitlines()[0]}): mend it or leave its run out."


def _at(tree: Any, *keys: str) -> dict[str, Any]:
    """A mapping inside a tree; empty where it is not there."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def _natural(folder: Path) -> list[Any]:
    """Sorts 10 behind 9, as a reader would."""
    words = re.split(r"(\d+)", str(folder))
    return [int(word) if i % 2 else word for i, word in enumerate(words)]
