"""The runs of a sweep side by side, best first: csv, Markdown, picture and console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spectramind_fused.files import write_together
from spectramind_fused.training import past_runs, pictures
from spectramind_fused.training.labels import short
from spectramind_fused.training.past_runs import PastRun
from spectramind_fused.training.tables import as_csv, as_markdown


class Leaderboard(Callback):
    """Writes `leaderboard.csv` and `leaderboard.md` into a sweep's folder after each of its jobs.

    What is there is read from the jobs' folders: that serves every launcher, and a sweep that
    is cut short keeps the table of what it had. `leaderboard.png` is drawn at the end.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Brings the files up to date."""
        if config.hydra.mode == RunMode.MULTIRUN:
            write(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the table, and draws the picture."""
        folder = Path(config.hydra.sweep.dir)
        head, *rows = write(folder)
        table = Table(title="leaderboard: val/gll, lower is better", title_justify="left")
        for name, called in short(head).items():
            whole = name in ("rank", "val/gll", "config hash", "run")
            table.add_column(escape(called), overflow="fold", no_wrap=whole)
        for row in rows:
            table.add_row(*map(escape, row))
        console = Console(soft_wrap=True, highlight=False)
        console.print(table)
        files = ".csv, .md and .png" if draw(folder) else ".csv and .md"
        console.print(f"in        {escape(str(folder.absolute()))}/leaderboard{files}")


def write(folder: Path) -> list[list[str]]:
    """Writes csv and Markdown, both whole or neither; returns their header and rows."""
    jobs = read(folder)
    varied = past_runs.varied(jobs)
    pruned = ["pruned"] if any(job.pruned for job in jobs) else []
    head = ["rank", "val/gll", "within 1 sigma", *pruned, *varied, "config hash", "run"]
    rows = [
        [
            str(i + 1),
            _figure(job, job.score),
            _figure(job, job.calibration("within 1 sigma")),
            *([job.pruned] if pruned else []),
            *(job.value(key) for key in varied),
            job.config_hash,
            str(job.folder.relative_to(folder)),
        ]
        for i, job in enumerate(jobs)
    ]
    files = {"leaderboard.csv": as_csv([head, *rows]), "leaderboard.md": as_markdown([head, *rows])}
    write_together({folder / name: text for name, text in files.items()})
    return [head, *rows]


def draw(folder: Path) -> bool:
    """Writes the picture, where there are runs and matplotlib; returns whether it did."""
    jobs = read(folder)
    if not (jobs and pictures.available()):
        return False
    write_together({folder / "leaderboard.png": pictures.png(pictures.leaderboard(jobs))})
    return True


def read(folder: Path) -> list[PastRun]:
    """What each job of a sweep came to: the best first, what diverged or did not end last."""
    return sorted(past_runs.inside(folder), key=past_runs.rank)


def _figure(job: PastRun, value: float) -> str:
    return "no result" if job.result is None else f"{value:.4f}"
