"""Runs beside the first of them: what each came to, what it took, and what it was set to."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spectramind_fused.files import unwritable, write_together
from spectramind_fused.training import past_runs, pictures
from spectramind_fused.training.labels import names
from spectramind_fused.training.past_runs import PastRun
from spectramind_fused.training.tables import as_csv, as_markdown

CALIBRATION = ("within 1 sigma", "within 2 sigma", "rms of error / sigma")
_SAID = 3  # no more differing keys stand on the console
_INTRODUCTION = """# Runs beside run 1

val/gll is per bin, lower is better. A calibrated run has 0.683 of the targets within 1 sigma,
0.954 within 2, and an rms of error / sigma of 1. The time of a step is that of training by the wall
clock: batches, both passes, optimizer and schedule. `compare.png` draws all of it.
"""
# Follows from the optimizer's name, and says nothing about training.
_SAYS_NOTHING = ("optimizer.export_json",)


def gathered(folders: Sequence[Path]) -> list[PastRun]:
    """The runs that folders stand for, each once, in the order given.

    Args:
        folders: of runs, or of sweeps: these stand for all of their runs.

    Raises:
        ValueError: they are no runs, too few, or the first did not end.
    """
    found: dict[Path, PastRun] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: give the folder of a run or of a sweep.")
        runs = past_runs.inside(folder)
        if not runs:
            raise ValueError(
                f"{folder} is no run and holds none: a run's folder has .hydra in it, such as "
                "outputs/train/DATE/TIME."
            )
        for run in runs:
            found.setdefault(run.folder.resolve(), run)
    first, *others = found.values()
    if not others:
        raise ValueError(f"{first.folder} is one run: give others, or a sweep, to compare with it.")
    if first.result is None:
        raise ValueError(
            f"{first.folder} {first.fate}: the first run is what the others are compared with, "
            "give one that has ended."
        )
    return [first, *others]


def warn(runs: Sequence[PastRun]) -> None:
    """Says what of a comparison means less than it seems to."""
    first = runs[0]
    for run in runs:
        if run.outcome == "did not end":
            warnings.warn(f"{run.folder} {run.fate}: it has no result.", stacklevel=2)
    if first.outcome:
        warnings.warn(
            f"{first.folder} {first.fate}: nothing can be compared with it.", stacklevel=2
        )
    of_data = {
        run.folder: [k for k in _changed(first, run) if k.startswith("data.")] for run in runs
    }
    if keys := sorted({key for keys in of_data.values() for key in keys}):
        other = ", ".join(str(folder) for folder, keys in of_data.items() if keys)
        warnings.warn(
            f"not of the same data as the first run ({', '.join(keys)}): {other}. "
            "val/gll and calibration cannot be compared.",
            stacklevel=2,
        )
    devices = dict.fromkeys(run.device for run in runs if run.device)
    if len(devices) > 1:
        warnings.warn(
            f"these runs trained on {', '.join(devices)}: times cannot be compared.", stacklevel=2
        )


def differing(first: PastRun, run: PastRun) -> list[str]:
    """The overrides that would make the first run's config this one's.

    A key that only the first has is `~key`, as Hydra writes it.
    """
    keys = _changed(first, run)
    present = [f"{key}={_typed(run.config[key])}" for key in keys if key in run.config]
    return present + [f"~{key}" for key in keys if key not in run.config]


def _changed(first: PastRun, run: PastRun) -> list[str]:
    """The keys whose values are not those of the first run; those that both have come first."""
    ours, theirs = run.config, first.config
    keys = sorted(dict.fromkeys([*ours, *theirs]), key=lambda key: key not in theirs)
    absent = object()
    return [
        key
        for key in keys
        if ours.get(key, absent) != theirs.get(key, absent) and key not in _SAYS_NOTHING
    ]


def table(runs: Sequence[PastRun]) -> list[list[str]]:
    """The comparison in full, header first; what a run does not have is empty."""
    head = [
        "run", "what", "val/gll", "difference", *CALIBRATION, "ms per step", "optimizer",
        "backend", "config hash", "differs from run 1 in", "outcome", "folder",
    ]  # fmt: skip
    first = runs[0]
    rows = []
    for i, (run, name) in enumerate(zip(runs, names(runs), strict=True), start=1):
        figures = [run.score, run.score - first.score, *map(run.calibration, CALIBRATION)]
        cells = [
            *(_figure(value) for value in [*figures, run.ms_per_step]),
            _optimizer(run),
            ", ".join(f"{d}: {name}" for d, name in run.record.get("backend", {}).items()),
            run.config_hash,
            " ".join(differing(first, run)),
            run.fate or "ended",
            str(run.folder),
        ]
        rows.append([str(i), name, *cells])
    return [head, *rows]


def show(runs: Sequence[PastRun], console: Console) -> None:
    """Prints what of the comparison fits on a console."""
    shown = Table(title="val/gll beside run 1, lower is better", title_justify="left")
    for name in ("run", "val/gll", "difference", "1 sigma", "rms", "ms/step",
                 "optimizer", "config hash"):  # fmt: skip
        shown.add_column(name, no_wrap=True)
    shown.add_column("differs from run 1 in", overflow="fold")
    for i, (run, name) in enumerate(zip(runs, names(runs), strict=True), start=1):
        keys = differing(runs[0], run)
        what = f"{name}: {len(keys) or 'no'} keys" if i > 1 else f"run 1: {name}"
        within, _, rms = map(run.calibration, CALIBRATION)
        cells = [
            str(i),
            run.outcome or _figure(run.score),
            _figure(run.score - runs[0].score, "+.4f") if i > 1 else "",
            _figure(within, ".3f"),
            _figure(rms, ".3f"),
            _figure(run.ms_per_step, ".2f"),
            _optimizer(run),
            run.config_hash,
            "\n".join(keys) if 0 < len(keys) <= _SAID else what,
        ]
        shown.add_row(*map(escape, cells))
    console.print(shown)


def problem_with(out: Path) -> str:
    """Why the comparison cannot be written to a folder; empty where it can."""
    reasons = (unwritable(out / f"compare.{kind}") for kind in ("csv", "md", "png"))
    return next((reason for reason in reasons if reason), "")


def write(runs: Sequence[PastRun], out: Path) -> list[str]:
    """Writes csv, Markdown and picture, all of them whole or none; returns their names.

    Args:
        runs: as `gathered` returns them.
        out: the folder; it is made where it is missing.
    """
    rows = table(runs)
    files: dict[Path, str | bytes] = {
        out / "compare.csv": as_csv(rows),
        out / "compare.md": f"{_INTRODUCTION}\n{as_markdown(rows)}",
    }
    if pictures.available():
        files[out / "compare.png"] = pictures.png(pictures.comparison(runs))
    write_together(files)
    return [path.name for path in files]


def _figure(value: float, form: str = ".4f") -> str:
    if math.isnan(value):
        return ""
    return f"{value:{form}}" if abs(value) < 1000 else f"{value:.3g}"


def _typed(value: Any) -> str:
    """A value as one would type it in an override."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _optimizer(run: PastRun) -> str:
    return str(run.record.get("class") or run.config.get("optimizer.type", ""))
