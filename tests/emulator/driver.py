"""A Triton driver whose GPU is the emulator: unmodified launches compile and run here.

The one file that leans on semi-internal interfaces of Triton (3.9): the driver, the launcher,
and the cache in which the compiler leaves the PTX.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.cache import get_cache_manager

from tests.emulator.gpu import EmulatedGPU


class EmulatedDriver(DriverBase):
    """Triton's way to the emulated GPU."""

    def __init__(self, gpu: EmulatedGPU) -> None:
        self.gpu = gpu
        self.utils = _Utils()
        self.launcher_cls = functools.partial(_Launcher, gpu)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.gpu.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.gpu.capability, 10)

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing is timed on an emulator")


class _Utils:
    """Loading a binary and asking the device: nothing to do, and roomy answers."""

    def load_binary(self, name: str, *_: Any) -> tuple[str, str, int, int, int]:
        return "loaded", name, 0, 0, 1024  # None: Triton would load it at every launch

    def unload_module(self, *_: Any) -> None:
        """Nothing was loaded."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 1, "warpSize": 32}


class _Launcher:
    def __init__(self, gpu: EmulatedGPU, source: Any, metadata: Any) -> None:
        self.gpu, self.metadata = gpu, metadata
        files = get_cache_manager(metadata.hash).get_group(f"{metadata.name}.json")
        self.ptx = Path(files[f"{metadata.name}.ptx"]).read_text()
        self.passed = [kind != "constexpr" for kind in source.signature.values()]

    def __call__(self, x: int, y: int, z: int, *rest: Any) -> None:
        arguments = rest[6:]  # stream, function, two sets of metadata, two hooks
        values = [
            value.data_ptr() if isinstance(value, torch.Tensor) else int(value)
            for value, passed in zip(arguments, self.passed, strict=True)
            if passed
        ]
        kernel = self.gpu.kernel(self.ptx)
        scratch = [0] * (len(kernel.params) - len(values))  # global and profile scratch: unused
        self.gpu.launch(kernel.name, kernel, (x, y, z), values + scratch, self.metadata.shared)


def activate(gpu: EmulatedGPU) -> None:
    """Makes the emulator Triton's active driver."""
    triton.runtime.driver.set_active(EmulatedDriver(gpu))
