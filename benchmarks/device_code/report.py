"""Prints what is known of every kernel variant: two tables for each target and backend."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.device_code import issue_rate


def show(arch: str, backend: str, rows: list[dict[str, Any]]) -> None:
    """Prints the tables of one target and backend; none where there are no rows."""
    title = f"{arch}, {backend}: machine code of every variant"
    table = _table(title, "kernel", "dtype", "options", "registers", "spills", "stack", "occupancy",
                   "accesses (bits x count)", "bytes per parameter", "by formula")  # fmt: skip
    for row in rows:
        table.add_row(*_cells(row))
    rated = _table(f"{arch}, {backend}: instructions or bytes? A model, not a measurement",
                   "kernel", "dtype", "options", "warp instructions for 32 elements", "busiest",
                   "ps per element by issue", "by bytes", "issue / bytes", "binds")  # fmt: skip
    for row in rows:
        for rate in row["rates"]:
            rated.add_row(*_rated_cells(row, rate))
    console = Console(width=170)
    if table.row_count:
        console.print(table)
    if rated.row_count:
        console.print(rated)
        console.print(issue_rate.assumed(arch), highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name not in ("kernel", "dtype") else "left")
    return table


def _label(row: dict[str, Any]) -> tuple[str, str, str]:
    """Kernel, dtype, options."""
    return (
        " ".join(str(row[key]) for key in ("kernel", "rule", "states") if key in row),
        str(row.get("dtype", "")).removeprefix("torch."),
        ", ".join(key for key, value in row.items() if value is True),
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    touches, formula = row["kernel"] != "advance", row["expected_bytes"] is not None
    accesses = ", ".join(f"{width} x {n}" for width, n in row["accesses"].items())
    return (
        *_label(row),
        *(str(row[key]) for key in ("registers", "spills", "stack")),
        f"{row['occupancy']:.0%}",
        accesses if touches else "",
        f"{row['bytes_per_parameter']:g}" if formula else "",
        f"{row['expected_bytes']:g}" if formula else "",
    )


def _rated_cells(row: dict[str, Any], rate: issue_rate.Rate) -> tuple[str, ...]:
    kernel, dtype, options = _label(row)
    return (
        kernel,
        dtype,
        options or rate.step,
        f"{rate.warp_instructions:.1f}",
        rate.busiest,
        f"{rate.issue_ps:.2f}",
        f"{rate.bytes_ps:.2f}",
        f"{rate.issue_ps / rate.bytes_ps:.0%}",
        rate.binds,
    )
