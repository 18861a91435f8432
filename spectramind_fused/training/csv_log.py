"""`metrics.csv`, whole after every write, as Lightning's own logger does not leave it."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from spectramind_fused.files import write_whole
from spectramind_fused.training.tables import complete_rows

_FILE = "metrics.csv"


class CsvLog:
    """Figures by step, with a column for each name that ever came.

    Lightning's CSVLogger removes the rows of a run that goes on, to write them anew, and rewrites
    its file in place for a new column: whoever is killed meanwhile has lost them.

    Args:
        folder: where `metrics.csv` lies.
        done: the last step whose rows stay; None where a run begins.
    """

    def __init__(self, folder: Path, done: int | None) -> None:
        self._path = folder / _FILE
        rows = complete_rows(self._path) if done is not None else []
        self._rows: list[dict[str, Any]] = []  # not yet written
        self._columns: list[str] = []
        if rows:
            self._columns = list(rows[0])
            self._write([row for row in rows if int(row["step"]) <= (done or 0)])
        else:
            self._path.unlink(missing_ok=True)

    def log_metrics(self, figures: dict[str, float], step: int) -> None:
        """Takes a row; `save` writes it."""
        self._rows.append({**figures, "step": step})

    def save(self) -> None:
        """Writes what came since."""
        new = {name for row in self._rows for name in row} - {*self._columns}
        if new:
            rows = complete_rows(self._path) + self._rows
            self._columns = sorted({*self._columns, *new})
            self._write(rows)
        elif self._rows:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                file.write(self._text(self._rows, header=False))
        self._rows = []

    def finalize(self, status: str) -> None:
        """Writes what is left, however the run ended."""
        self.save()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        write_whole(self._path, self._text(rows, header=True))

    def _text(self, rows: list[dict[str, Any]], header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
