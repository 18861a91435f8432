"""Builds csrc/ into a plain shared library, which ctypes loads: no torch, no Python ABI."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CPU = Extension(
    "spectramind_fused.kernels._cpu",
    sources=["csrc/cpu/step.cpp"],
    depends=[str(header) for header in Path("csrc").rglob("*.h")],
    language="c++",
    # No FMA contraction: the same bits on every CPU, and in Triton without FP fusion. Nobody reads
    # the traps of floating point; where they count, no loop with a choice becomes AVX2 vectors.
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
    ],
    optional=True,  # without a compiler the install goes on, and the eager path serves
)


class BuildPackage(build_py):
    """Ships configs/ inside the package; an editable install reads them where they are."""

    def run(self) -> None:
        """Copies the Python files, then the configs."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "spectramind_fused", "configs")
            shutil.copytree("configs", target, dirs_exist_ok=True)


class BuildLibrary(build_ext):
    """Names the library without a Python tag, and says what its absence means."""

    def get_ext_filename(self, fullname: str) -> str:
        """One file name for every Python."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compiles; where that fails, says what will run instead."""
        try:
            super().build_extension(ext)
        except Exception:
            self.announce(
                "spectramind_fused: no C++ kernels were built (is there a C++17 compiler?). "
                "The package works all the same; CPU tensors take the eager path.",
                level=3,
            )
            raise


class AnyPythonWheel(bdist_wheel):
    """Tags the wheel by platform only: the library serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-<platform>."""
        return "py3", "none", super().get_tag()[2]


setup(
    packages=find_packages(include=["spectramind_fused*"]),
    package_data={"spectramind_fused": ["py.typed"]},
    ext_modules=[CPU],
    cmdclass={
        "build_py": BuildPackage,
        "build_ext": BuildLibrary,
        "bdist_wheel": AnyPythonWheel,
    },
)
