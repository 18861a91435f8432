"""How csrc/ is compiled: by setup.py, by benchmarks/gpu without it, and by the tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

_CSRC = Path(__file__).with_name("csrc")
SOURCE = _CSRC / "cuda" / "step.cu"
# Relative to this folder, as setuptools wants them.
CPU_SOURCES = ["csrc/cpu/step.cpp", "csrc/host/facts.cpp"]
# No FMA contraction: the same bits on every CPU, and in Triton without FP fusion. Nobody reads
# the traps of floating point; where they count, no loop with a choice becomes AVX2 vectors.
CPU_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
# No FMA contraction: an fma is one that a rule writes out, so the bits are those of csrc/cpu.
# Compressed it is a fifth as large.
FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-shared", "-Xcompiler", "-fPIC",
         "-Xfatbin=-compress-all"]  # fmt: skip
# One of each generation; PTX of the last that nvcc knows is for what follows.
_DEFAULT_ARCHS = ("8.0", "9.0", "10.0", "12.0")
_OLDEST = (8, 0)  # converts to bfloat16 in one instruction


def cpu_command(compiler: list[str], output: Path) -> list[str]:
    """The one call that compiles the C++ kernels, for where setuptools is missing.

    Args:
        compiler: of C++17, with options of its own.
        output: the shared library.
    """
    sources = [str(_CSRC.parent / source) for source in CPU_SOURCES]
    return [*compiler, *CPU_FLAGS, "-DNDEBUG", "-shared", "-fPIC", "-o", str(output), *sources]


def find_nvcc() -> str | None:
    """Nvcc on PATH, or where CUDA_HOME says."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


def default_archs(nvcc: str) -> str:
    """What is built where TORCH_CUDA_ARCH_LIST does not say: what this nvcc knows of ours."""
    run = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    known = [
        arch for arch in _DEFAULT_ARCHS if f"compute_{arch.replace('.', '')}" in run.stdout.split()
    ]
    return ";".join(known) + "+PTX" if known else "8.0+PTX"


def gencodes(archs: str) -> list[str]:
    """What a TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX", "8.0 9.0") means to nvcc.

    GPUs before sm_80 are left out: these kernels do not serve them.

    Raises:
        ValueError: an entry is no compute capability, or none is left.
    """
    options = []
    for entry in filter(None, re.split(r"[;,\s]+", archs)):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if match is None:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST has {entry!r}: write compute capabilities like '8.0;9.0+PTX'"
            )
        if (int(match[1]), int(match[2])) < _OLDEST:
            continue
        arch = match[1] + match[2] + match[3]
        options.append(f"arch=compute_{arch},code=sm_{arch}")
        if match[4]:
            options.append(f"arch=compute_{arch},code=compute_{arch}")
    if not options:
        raise ValueError(f"TORCH_CUDA_ARCH_LIST={archs!r} names no GPU from 8.0 on: add '8.0+PTX'")
    return options


def command(nvcc: str, output: Path, archs: list[str]) -> list[str]:
    """The one call that compiles the kernels and links cudart statically.

    Args:
        nvcc: the compiler.
        output: the shared library.
        archs: what `gencodes` returned.
    """
    codes = [word for arch in archs for word in ("-gencode", arch)]
    return [nvcc, *FLAGS, "--threads", "2", *codes, "-cudart", "static", "-o", str(output),
            str(SOURCE)]  # fmt: skip
