"""Builds csrc/ into plain shared libraries, which ctypes loads: no torch, no Python ABI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))
import cuda_build

CPU = Extension(
    "spectramind_fused.kernels._cpu",
    sources=cuda_build.CPU_SOURCES,
    depends=[str(header) for header in Path("csrc").rglob("*.h")],
    language="c++",
    extra_compile_args=[*cuda_build.CPU_FLAGS, "-g0"],  # Python's flags ask for debug information
    optional=True,  # without a compiler the install goes on, and the eager path serves
)
CUDA = Extension(
    "spectramind_fused.kernels._cuda",
    sources=["csrc/cuda/step.cu"],
    depends=[str(header) for header in Path("csrc").rglob("*.*h")],
    optional=True,  # without nvcc Triton serves GPUs
)


class BuildPackage(build_py):
    """Ships configs/ inside the package; an editable install reads them where they are."""

    def run(self) -> None:
        """Copies the Python files, then the configs."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "spectramind_fused", "configs")
            rest = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree("configs", target, dirs_exist_ok=True, ignore=rest)


class BuildLibrary(build_ext):
    """Names the libraries without a Python tag, and says what their absence means."""

    def get_ext_filename(self, fullname: str) -> str:
        """One file name for every Python."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compiles; where that fails, says what will run instead."""
        if ext is CUDA:
            self._build_cuda(Path(self.get_ext_fullpath(ext.name)))
            return
        try:
            super().build_extension(ext)
        except Exception:
            self.announce(
                "spectramind_fused: no C++ kernels were built (is there a C++17 compiler?). "
                "The package works all the same; CPU tensors take the eager path.",
                level=3,
            )
            raise

    def copy_extensions_to_source(self) -> None:
        """For an editable install: also why there is no CUDA library, and none of yesterday's."""
        super().copy_extensions_to_source()
        paths = self._get_inplace_equivalent(self.get_finalized_command("build_py"), CUDA)
        inplace, built = map(Path, paths)
        for suffix in (".so", ".txt"):
            inplace.with_suffix(suffix).unlink(missing_ok=True)
            if built.with_suffix(suffix).exists():
                shutil.copy2(built.with_suffix(suffix), inplace.with_suffix(suffix))

    def _build_cuda(self, library: Path) -> None:
        """Runs nvcc; where there is none, or it fails, leaves the reason for `spectramind doctor`.

        An install goes on without it: Triton serves GPUs, C++ and torch everything else.
        """
        library.parent.mkdir(parents=True, exist_ok=True)
        absent = library.with_suffix(".txt")
        for old in (library, absent):
            old.unlink(missing_ok=True)
        try:
            nvcc = cuda_build.find_nvcc()
            if nvcc is None:
                raise ValueError("nvcc was not found")
            archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or cuda_build.default_archs(nvcc)
            command = cuda_build.command(nvcc, library, cuda_build.gencodes(archs))
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                print(run.stdout, run.stderr, file=sys.stderr)
                raise ValueError(f"nvcc failed: {_first_error(run.stdout + run.stderr)}")
        except (OSError, ValueError) as problem:
            absent.write_text(f"{problem}\n")
            self.announce(
                f"spectramind_fused: no CUDA kernels were built ({problem}). "
                "The package works all the same; Triton serves GPUs.",
                level=3,
            )


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return (errors or lines or ["it said nothing"])[0]


class AnyPythonWheel(bdist_wheel):
    """Tags the wheel by platform only: the library serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-<platform>."""
        return "py3", "none", super().get_tag()[2]


setup(
    packages=find_packages(include=["spectramind_fused*"]),
    package_data={"spectramind_fused": ["py.typed"]},
    ext_modules=[CPU, CUDA],
    cmdclass={
        "build_py": BuildPackage,
        "build_ext": BuildLibrary,
        "bdist_wheel": AnyPythonWheel,
    },
)
