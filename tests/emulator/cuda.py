"""The CUDA kernels of csrc/ on the emulated GPU: compiled by nvcc, launched by their own launchers.

`cudart.cpp` stands in for the CUDA runtime; the PTX is what nvcc made of the same source.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

from filelock import FileLock

import cuda_build
from spectramind_fused.kernels import BACKENDS, cuda
from tests.emulator.gpu import EmulatedGPU
from tests.emulator.native import cached
from tests.emulator.ptx import PTXError, kernels_of

CAPABILITIES = (80, 90, 100)
_KERNELS = "norm|reduce|advance|update|squares|move|divide|measure|scale"
RUNTIME = Path(__file__).with_name("cudart.cpp")
_LAUNCHED = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p)
)


class EmulatedRuntime:
    """Takes the launches of the library to the emulated GPU."""

    def __init__(self, gpu: EmulatedGPU, folder: Path) -> None:
        self.gpu = gpu
        self.kernels = kernels_of((folder / f"step.compute_{gpu.capability}.ptx").read_text())
        self.failure: BaseException | None = None
        self.library = ctypes.CDLL(str(folder / "_cuda.so"))
        self._callback = _LAUNCHED(self._launched)
        self.library.emulated_begin(self._callback)

    def check(self, error: int) -> None:
        """Raises what went wrong in a launch, which C cannot pass on."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        assert error == 0

    def _launched(self, name: bytes, blocks: int, threads: int, arguments: object) -> int:
        try:
            kernel = self.gpu.kernel(self.kernels[name.decode()])
            if threads != kernel.threads:
                raise PTXError(f"{kernel.name} is launched with {threads} threads per block")
            values: list[int | bytes] = [
                ctypes.string_at(arguments[i], size)  # type: ignore[index]
                for i, size in enumerate(kernel.params.values())
            ]
            self.gpu.launch(plain_name(kernel.name), kernel, (blocks, 1, 1), values)
        except BaseException as failure:
            self.failure = failure
            return 1
        return 0


def plain_name(name: str) -> str:
    """Of a launch (`norm`, `advance`, `update`, ...), as C++ mangles it or as Triton leaves it."""
    found = re.fullmatch(rf"(?:_ZN11spectramind\d+)?({_KERNELS})(?:[IE]\w+)?", name)
    return found[1]  # type: ignore[index]


def missing() -> str | None:
    """Why the CUDA kernels cannot be emulated here, or None."""
    return None if cuda_build.find_nvcc() else "without nvcc the CUDA kernels are not emulated"


def build() -> Path:
    """Compiles the kernels to PTX for each GPU and the launchers to a library, in one call.

    Done once for each text of csrc, whoever asks: the folder is named after the contents.
    """
    nvcc = str(cuda_build.find_nvcc())
    version = subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout
    csrc = cuda_build.SOURCE.parents[1]
    sources = [path.read_bytes() for path in sorted(csrc.rglob("*")) if path.is_file()]
    codes = [f"-gencode=arch=compute_{c},code=compute_{c}" for c in CAPABILITIES]
    options = [
        # What is played here goes before a CUDA runtime that torch has loaded.
        *cuda_build.FLAGS, *codes, "-cudart", "none", "-Xlinker", "-Bsymbolic", "--threads", "2",
    ]  # fmt: skip
    folder = cached("cuda", version, *options, *sources, RUNTIME.read_bytes())
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            made = folder.with_suffix(".new")
            made.mkdir(exist_ok=True)
            kept = ["--keep", "--keep-dir", str(made), "-o", str(made / "_cuda.so")]
            command = [nvcc, *options, *kept, str(cuda_build.SOURCE), str(RUNTIME)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stdout + run.stderr
            made.rename(folder)
    return folder


def activate(gpu: EmulatedGPU, folder: Path) -> EmulatedRuntime:
    """Makes backend="cuda" serve CPU tensors, on the emulated GPU."""
    cuda._LIBRARY = folder / "_cuda.so"
    cuda._load.cache_clear()
    BACKENDS["cuda"].serves = "cpu"  # type: ignore[attr-defined]
    runtime = EmulatedRuntime(gpu, folder)
    cuda._check = runtime.check
    return runtime
