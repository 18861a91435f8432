"""Where figures are printed: through rich where it is installed, else as plain text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol


class Console(Protocol):
    """What a report needs of a console."""

    def say(self, text: str) -> None:
        """Prints a line."""

    def whisper(self, text: str) -> None:
        """Prints a line that matters less."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table; its first column is of words, the others of numbers."""


def console() -> Console:
    """Rich's where it is installed."""
    try:
        return _Rich()
    except ModuleNotFoundError:
        return _Plain()


class _Rich:
    def __init__(self) -> None:
        from rich.console import Console as RichConsole
        from rich.table import Table

        self._console = RichConsole(width=max(120, RichConsole().width), highlight=False)
        self._new = Table

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def whisper(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        made = self._new(title=title, title_justify="left")
        made.add_column(columns[0], no_wrap=True)
        for name in columns[1:]:
            made.add_column(name, justify="right")
        for row in rows:
            made.add_row(*row)
        self._console.print(made)


class _Plain:
    def say(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    whisper = say

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        self.say(title)
        for row in (columns, ["-" * width for width in widths], *rows):
            first, *others = row
            cells = [first.ljust(widths[0])]
            cells += [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
            self.say("  ".join(cells).rstrip())
