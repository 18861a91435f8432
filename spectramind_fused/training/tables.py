"""Rows as text of csv and of Markdown, the first being the header; and csv read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """Rows as csv."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table of Markdown."""
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def complete_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file, by column; what a killed process did not write to the end is none.

    Args:
        path: the file; without one there are no rows.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole_lines = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(whole_lines, newline=""))
    return [row for row in rows if None not in row.values() and None not in row]
