"""The runs of a sweep side by side, best first: csv, Markdown and console."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spectramind_fused.config.records import write_whole


class Leaderboard(Callback):
    """Writes `leaderboard.csv` and `leaderboard.md` into a sweep's folder after each of its jobs.

    What is there is read from the jobs' folders: that serves every launcher, and a sweep that
    is cut short keeps the table of what it had.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Brings the files up to date."""
        if config.hydra.mode == RunMode.MULTIRUN:
            write(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the table."""
        folder = Path(config.hydra.sweep.dir)
        head, *rows = write(folder)
        table = Table(title="leaderboard: val/gll, lower is better", title_justify="left")
        for name in head:
            table.add_column(escape(name), overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        console = Console(soft_wrap=True, highlight=False)
        console.print(table)
        console.print(f"in        {escape(str(folder.absolute()))}/leaderboard.csv and .md")


def write(folder: Path) -> list[list[str]]:
    """Writes both files, each whole or not at all; returns their header and rows."""
    jobs = sorted(read(folder), key=_rank)
    varied = _varied([job["overrides"] for job in jobs])
    head = ["rank", "val/gll", "within 1 sigma", *varied, "config hash", "run"]
    rows = [
        [
            str(i + 1),
            _figure(job, "val/gll"),
            _figure(job, "within 1 sigma"),
            *(job["overrides"].get(key, "") for key in varied),
            job["config hash"],
            job["run"],
        ]
        for i, job in enumerate(jobs)
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_whole(folder / "leaderboard.csv", text.getvalue())
    lines = [head, ["---"] * len(head), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    write_whole(folder / "leaderboard.md", "".join(f"| {' | '.join(line)} |\n" for line in cells))
    return [head, *rows]


def read(folder: Path) -> list[dict[str, Any]]:
    """What each job of a sweep came to, as far as it came."""
    jobs = []
    for overrides in sorted(folder.rglob(".hydra/overrides.yaml")):
        run = overrides.parents[1]
        words = [str(word).lstrip("+").partition("=") for word in OmegaConf.load(overrides)]
        job: dict[str, Any] = {"run": str(run.relative_to(folder)), "config hash": ""}
        job["overrides"] = {key: value for key, _, value in words}
        if (run / "optimizer.json").is_file():
            record = json.loads((run / "optimizer.json").read_text(encoding="utf-8"))
            job["config hash"] = record["config_hash"][:12]
        if (run / "result.json").is_file():
            result = json.loads((run / "result.json").read_text(encoding="utf-8"))
            job |= {"val/gll": result["val/gll"], **result["calibration"]}
        jobs.append(job)
    return jobs


def _rank(job: dict[str, Any]) -> tuple[bool, float]:
    """Best first; what diverged or did not end comes last."""
    score = job.get("val/gll", math.nan)
    return math.isnan(score), 0.0 if math.isnan(score) else score


def _varied(overrides: list[dict[str, str]]) -> list[str]:
    """The keys that do not have the same value in every job."""
    keys = dict.fromkeys(key for each in overrides for key in each)
    return [key for key in keys if len({each.get(key) for each in overrides}) > 1]


def _figure(job: dict[str, Any], name: str) -> str:
    return f"{job[name]:.4f}" if name in job else "no result"
