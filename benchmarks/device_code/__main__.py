"""Prints what the assemblers made of every kernel variant, for GPUs that need not be here.

python -m benchmarks.device_code sm_90 gfx942
python -m benchmarks.device_code --backend cuda --json sm_80
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from triton.backends.compiler import GPUTarget

from benchmarks.device_code import cuda
from benchmarks.device_code.machine_code import read
from benchmarks.device_code.variants import compiled, variants
from spectramind_fused.bench.traffic import of_norm, of_update

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def expected_bytes(variant: dict[str, Any]) -> float | None:
    """Bytes per parameter by the formula, on a step that syncs; None for `advance`."""
    if variant["kernel"] == "advance":
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
        yield {
            "arch": arch,
            "backend": "triton",
            **variant,
            **read(binary, TARGETS[arch])._asdict(),
            "expected_bytes": expected_bytes(variant),
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
    for arch in given.targets:
        for backend in [given.backend] if given.backend else BACKENDS:
            rows = BACKENDS[backend](arch)
            if given.json:
                for row in rows:
                    print(json.dumps(row), flush=True)
            else:
                show(f"{arch}, {backend}: machine code of every variant", rows)


def show(title: str, rows: Iterable[dict[str, Any]]) -> None:
    """Prints the table of one target and backend; nothing where there are no rows."""
    from rich.console import Console  # not needed for rows, which the tests read
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("kernel", "dtype", "options", "registers", "spills", "stack", "occupancy",
                 "accesses (bits x count)", "bytes per parameter", "by formula"):  # fmt: skip
        table.add_column(name, justify="right" if name not in ("kernel", "dtype") else "left")
    for row in rows:
        table.add_row(*_cells(row))
    if table.row_count:
        Console(width=170).print(table)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    name = " ".join(str(row[key]) for key in ("kernel", "rule", "states") if key in row)
    touches, formula = row["kernel"] != "advance", row["expected_bytes"] is not None
    accesses = ", ".join(f"{width} x {n}" for width, n in row["accesses"].items())
    return (
        name,
        str(row.get("dtype", "")).removeprefix("torch."),
        ", ".join(key for key, value in row.items() if value is True),
        *(str(row[key]) for key in ("registers", "spills", "stack")),
        f"{row['occupancy']:.0%}",
        accesses if touches else "",
        f"{row['bytes_per_parameter']:g}" if formula else "",
        f"{row['expected_bytes']:g}" if formula else "",
    )


if __name__ == "__main__":
    main()
