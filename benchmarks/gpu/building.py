"""Phase: the libraries of csrc/, compiled for this GPU where the package lies."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import cuda_build
from benchmarks.gpu.build import KERNELS, build
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.phase import main


def run(gpu: Any, findings: Findings) -> None:
    """Builds both; a compiler that is there must succeed, one that is not is only noted."""
    with tempfile.TemporaryDirectory() as folder:
        # Where it is played the emulator has what nvcc makes of csrc/cuda, and what is there stays.
        aside = Path(folder) if (KERNELS / "_cpu.so").exists() else KERNELS
        where, libraries = gpu.pick((KERNELS, ("cpu", "cuda")), (aside, ("cpu",)))
        built = build(gpu.archs(), where, libraries)
        findings.set(built=built, archs=gpu.archs(), nvcc=cuda_build.find_nvcc())
    for name, became in built.items():
        if became != "built" and (name == "cpu" or cuda_build.find_nvcc()):
            findings.problem(f"the {name} kernels: {became}")


if __name__ == "__main__":
    main(run)
