"""Rows as a table on the console, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import get_type_hints

from spectramind_fused.bench.console import Console
from spectramind_fused.bench.contenders import OURS, WITHOUT_KERNELS
from spectramind_fused.bench.measure import Comparison, Row
from spectramind_fused.bench.programs import PROGRAMS
from spectramind_fused.files import write_whole

# A new row replaces an old one that has the same values in these columns.
_KEY = ("device", "versions", "workload", "optimizer", "dtype", "program", "contender")

_COLUMNS = ("step of", "median ms", "quartiles", "bytes/param", "of memory limit", "times ours")


def is_ours(row: Row) -> bool:
    """Whether a row is of our kernels."""
    return row.contender.startswith(OURS.name) and row.contender != WITHOUT_KERNELS


def show(comparison: Comparison, console: Console) -> None:
    """Prints a comparison, the fastest first, and who is missing."""
    rows = sorted(comparison.rows, key=lambda row: row.median_ms)
    first = rows[0]
    title = (
        f"{first.workload}: {first.tensors:,} tensors, {first.parameters / 1e6:,.1f} M parameters\n"
        f"{first.optimizer}, {first.dtype}: {PROGRAMS[first.program].title}"
    )
    ours = next((row.median_ms for row in rows if is_ours(row)), None)
    cells = []
    for row in rows:
        gain = "" if ours is None or row.median_ms == ours else f"{row.median_ms / ours:.2f}"
        cells.append(
            (
                row.contender,
                f"{row.median_ms:.2f}",
                f"{row.low_ms:.2f} to {row.high_ms:.2f}",
                f"{row.bytes_per_parameter:.1f}",
                f"{row.of_memory_limit:.0%}",
                gain,
            )
        )
    console.table(title, _COLUMNS, cells)
    for name, reason in comparison.absent.items():
        console.whisper(f"  without {name}: {reason}")


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file, none if there is no file.

    Raises:
        ValueError: the file holds other columns.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != Row._fields:
            raise ValueError(f"{path} holds other columns than this version writes: move it away.")
        types = get_type_hints(Row)
        return [Row(*(types[name](line[name]) for name in Row._fields)) for line in reader]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows to a CSV file, in the place of those with the same device, versions and case.

    Raises:
        OSError: it cannot be written; what stood there is as it was.
        ValueError: the file holds other columns.
    """
    known = {tuple(getattr(row, key) for key in _KEY): row for row in read_rows(path)}
    known |= {tuple(getattr(row, key) for key in _KEY): row for row in rows}
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(Row._fields)
    for row in known.values():
        writer.writerow(f"{v:.4g}" if isinstance(v, float) else v for v in row)
    write_whole(path, text.getvalue())
