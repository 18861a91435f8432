"""Prints what the assemblers made of every kernel variant, for GPUs that need not be here.

For an A100, an L40S and an H100 also whether instructions or bytes bind it: a model, measured
nowhere (issue_rate.py).

python -m benchmarks.device_code sm_90 gfx942
python -m benchmarks.device_code --backend cuda --json sm_80
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget

from benchmarks.device_code import cuda, issue_rate
from benchmarks.device_code.machine_code import read
from benchmarks.device_code.variants import compiled, elements_of, variants
from spectramind_fused.bench.traffic import of_norm, of_update

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def expected_bytes(variant: dict[str, Any]) -> float | None:
    """Bytes per parameter by the formula, on a step that syncs; None of what reads tables only."""
    if variant["kernel"] in ("advance", "reduce"):
        return None
    size = 4 if variant["dtype"] == "torch.float32" else 2
    if variant["kernel"] == "norm":
        return of_norm(size).total
    epilogues = {"ema": variant["ema"], "zero_grads": variant["zero_grads"]}
    return of_update(variant["states"], size, syncs=variant["lookahead"], **epilogues).total


def triton_rows(arch: str, every: int = 1) -> Iterator[dict[str, Any]]:
    """Every variant of Triton's kernels, or one in a few, compiled and read."""
    for variant, kernel, constants in islice(variants(), 0, None, every):
        binary = compiled(kernel, constants, TARGETS[arch])
        assembly = binary.asm["ptx" if TARGETS[arch].backend == "cuda" else "amdgcn"]
        code, moved = read(binary, TARGETS[arch], elements_of(constants)), expected_bytes(variant)
        label = {"arch": arch, "backend": "triton", **variant}
        yield {
            **label,
            **code.figures(),
            "expected_bytes": moved,
            "rates": issue_rate.rates(label, code.code, {} if moved is None else {"": moved}),
            "barriers": assembly.count("bar.sync") + assembly.count("s_barrier"),
            "fmas": assembly.count("fma.rn.f32"),
            "contractible": len(re.findall(r"\b(?:add|sub|mul)\.f(?:32|64)\b", assembly)),
        }


def cuda_rows(arch: str) -> Iterator[dict[str, Any]]:
    """Every CUDA kernel, compiled and read; none for AMD, and none without nvcc."""
    if TARGETS[arch].backend != "cuda":
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            cubin, _ = cuda.compiled(arch, Path(folder))
        except FileNotFoundError as reason:
            print(f"without the CUDA kernels: {reason}", file=sys.stderr)
            return
        yield from cuda.rows(arch, cubin)


BACKENDS = {"triton": triton_rows, "cuda": cuda_rows}


def main() -> None:
    """Prints a table for each target, or a line of JSON for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET",
                        help=f"of {', '.join(TARGETS)}; all by default")  # fmt: skip
    parser.add_argument("--backend", choices=BACKENDS, help="one of them; both by default")
    parser.add_argument("--json", action="store_true", help="one line for each variant")
    given = parser.parse_args()
    unknown = [name for name in given.targets if name not in TARGETS]
    if unknown:
        parser.error(f"unknown target {unknown[0]!r}: choose from {', '.join(TARGETS)}")
    try:
        for arch in given.targets:
            for backend in [given.backend] if given.backend else BACKENDS:
                rows = BACKENDS[backend](arch)
                if given.json:
                    for row in rows:
                        rates = [rate._asdict() for rate in row["rates"]]
                        print(json.dumps({**row, "rates": rates}), flush=True)
                else:
                    show(arch, backend, list(rows))
    except ValueError as reason:
        parser.exit(1, f"{reason}\n")


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


if __name__ == "__main__":
    main()
