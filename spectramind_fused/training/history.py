"""What each epoch of a run came to, and `history.csv`, which keeps it."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import NamedTuple

from spectramind_fused.files import write_whole
from spectramind_fused.training.tables import complete_rows

_FILE = "history.csv"


class Epoch(NamedTuple):
    """What one epoch came to.

    Attributes:
        number: from 1.
        loss: mean of the steps' training losses.
        score: val/gll after it.
        lr: of the first parameter group, as the next step will have it.
        norm: median of the gradients' norms before clipping; None where no step took a norm.
        clipped: the share of its steps that clipped; None where nothing clips.
        skipped: how many of its steps a GradScaler skipped.
    """

    number: int
    loss: float
    score: float
    lr: float
    norm: float | None
    clipped: float | None
    skipped: int

    def figures(self) -> dict[str, float | None]:
        """Under the names that `history.csv` and loggers have for them."""
        return {
            "epoch": self.number,
            "train/gll": self.loss,
            "val/gll": self.score,
            "lr": self.lr,
            "grad/median_norm": self.norm,
            "grad/share_clipped": self.clipped,
            "grad/steps_skipped": self.skipped,
        }


_COLUMNS = tuple(Epoch(0, 0, 0, 0, 0, 0, 0).figures())


def begin(folder: Path, done: int, before: Path) -> None:
    """Writes `history.csv` anew: its header, and the epochs that a resumed run goes on from.

    Args:
        folder: of the run.
        done: how many epochs a checkpoint has; 0 for a run that begins.
        before: the folder of the run that wrote the checkpoint; may be the same.
    """
    rows = complete_rows(before / _FILE) if done else []
    rows = [row for row in rows if int(row["epoch"]) <= done]
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / _FILE, text.getvalue())


def add(folder: Path, epoch: Epoch) -> None:
    """Appends an epoch, on the disk before a checkpoint that has it behind it."""
    with (folder / _FILE).open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, _COLUMNS, lineterminator="\n").writerow(epoch.figures())
        file.flush()
        os.fsync(file.fileno())
