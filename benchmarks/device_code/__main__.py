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
from itertools import chain, islice
from pathlib import Path
from typing import Any

from triton.backends.compiler import GPUTarget

from benchmarks.device_code import cuda, issue_rate
from benchmarks.device_code.machine_code import read
from benchmarks.device_code.stored import of_stored
from benchmarks.device_code.variants import (
    compiled,
    elements_of,
    factored_variants,
    storage_variants,
    variants,
)
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
    if variant["kernel"] not in ("norm", "update"):
        return None
    if "storage" in variant:
        how = {"rule": variant["rule"], "zero_grads": variant["zero_grads"]}
        return of_stored(variant["slots"], **how).total
    size = 4 if variant["dtype"] == "torch.float32" else 2
    if variant["kernel"] == "norm":
        return of_norm(size).total
    epilogues = {"ema": variant["ema"], "zero_grads": variant["zero_grads"]}
    epilogues |= {"rule": variant["rule"], "syncs": variant["lookahead"]}
    return of_update(variant["states"], size, **epilogues).total


def triton_rows(arch: str, every: int = 1) -> Iterator[dict[str, Any]]:
    """Every variant of Triton's kernels, or one in a few, compiled and read."""
    for variant, kernel, constants in islice(
        chain(variants(), storage_variants(), factored_variants()), 0, None, every
    ):
        binary = compiled(kernel, constants, TARGETS[arch])
        assembly = binary.asm["ptx" if TARGETS[arch].backend == "cuda" else "amdgcn"]
        code, moved = read(binary, TARGETS[arch], elements_of(constants)), expected_bytes(variant)
        label = {"arch": arch, "backend": "triton", **variant}
        label.pop("slots", None)
        rated = moved is not None and "storage" not in variant
        yield {
            **label,
            **code.figures(),
            "expected_bytes": moved,
            "rates": issue_rate.rates(label, code.code, {"": moved} if rated else {}),
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
    from benchmarks.device_code import report  # its rich is not needed for rows, which tests read

    try:
        for arch in given.targets:
            for backend in [given.backend] if given.backend else BACKENDS:
                rows = BACKENDS[backend](arch)
                if given.json:
                    for row in rows:
                        rates = [rate._asdict() for rate in row["rates"]]
                        print(json.dumps({**row, "rates": rates}), flush=True)
                else:
                    report.show(arch, backend, list(rows))
    except ValueError as reason:
        parser.exit(1, f"{reason}\n")


if __name__ == "__main__":
    main()
