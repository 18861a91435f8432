"""csrc/ compiled where the package lies, without pip, setuptools or a network.

python -m benchmarks.gpu.build
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import cuda_build  # noqa: E402  (beside setup.py, not in a package)

KERNELS = ROOT / "spectramind_fused" / "kernels"


def build(
    archs: str = "", folder: Path = KERNELS, libraries: tuple[str, ...] = ("cpu", "cuda")
) -> dict[str, str]:
    """Compiles the libraries side by side; each takes its place only when it is whole.

    Args:
        archs: as TORCH_CUDA_ARCH_LIST; empty for those that setup.py builds.
        folder: where the libraries go.
        libraries: which of the two.

    Returns:
        For each library "built", or why it was not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        compilers = {"cpu": _cpu, "cuda": _cuda}
        running = {
            name: pool.submit(compilers[name], folder / f"_{name}.so", archs) for name in libraries
        }
        return {name: built.result() for name, built in running.items()}


def _cpu(library: Path, archs: str) -> str:
    named = shlex.split(os.environ.get("CXX", ""))
    found = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if not named and found is None:
        return "no C++ compiler was found"
    return _compiled(cuda_build.cpu_command(named or [str(found)], _new(library)), library)


def _cuda(library: Path, archs: str) -> str:
    nvcc = cuda_build.find_nvcc()
    if nvcc is None:
        return "nvcc was not found"
    try:
        codes = cuda_build.gencodes(archs or cuda_build.default_archs(nvcc))
    except ValueError as problem:
        return str(problem)
    return _compiled(cuda_build.command(nvcc, _new(library), codes), library)


def _new(library: Path) -> Path:
    return library.with_suffix(f".{os.getpid()}.new")


def _compiled(command: list[str], library: Path) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        return str(problem)
    if run.returncode:
        _new(library).unlink(missing_ok=True)
        return f"{command[0]} failed: {(run.stdout + run.stderr).strip()[-2000:]}"
    _new(library).replace(library)  # whoever has the old one open keeps it
    library.with_suffix(".txt").unlink(missing_ok=True)  # why there was none
    return "built"


if __name__ == "__main__":
    for name, outcome in build(os.environ.get("TORCH_CUDA_ARCH_LIST", "")).items():
        print(f"{name}: {outcome}")
