"""Rows as text of csv and of Markdown; the first row is the header."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence


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
