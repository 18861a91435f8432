"""A Triton driver whose GPU is the emulator: unmodified launches compile and run here.

The one file that leans on semi-internal interfaces of Triton (3.9): the driver, the launcher,
and the cache in which the compiler leaves the PTX.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.cache import get_cache_manager

from tests.emulator.machine import Machine
from tests.emulator.memory import Memory, Traffic
from tests.emulator.ptx import Kernel, parse


class Launch:
    """What one launch did."""

    def __init__(self, name: str, traffic: Traffic, executed: dict[str, int]) -> None:
        self.name, self.traffic, self.executed = name, traffic, executed


class EmulatedDriver(DriverBase):
    """Serves CPU tensors as a GPU of a given compute capability would.

    Attributes:
        launches: what was launched, in order.
        mutate: called with each kernel's PTX before it runs; tests plant bugs there.
    """

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.launches: list[Launch] = []
        self.mutate = lambda text: text
        self.utils = _Utils()
        self.launcher_cls = functools.partial(_Launcher, self)
        self._poison: dict[int, np.ndarray] = {}
        self._kept: list[torch.Tensor] = []

    def poison(self, tensor: torch.Tensor) -> None:
        """Marks a tensor's bytes as unwritten: loading one before a store is a fault."""
        self._kept.append(tensor)
        size = tensor.numel() * tensor.element_size()
        self._poison[tensor.data_ptr()] = np.ones(size, bool)

    def forget(self) -> None:
        """Forgets launches, poison and planted bugs."""
        self.launches, self._poison, self._kept = [], {}, []
        self.mutate = lambda text: text

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.capability, 10)

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing is timed on an emulator")


class _Utils:
    """Loading a binary and asking the device: nothing to do, and roomy answers."""

    def load_binary(self, name: str, *_: Any) -> tuple[None, str, int, int, int]:
        return None, name, 0, 0, 1024

    def unload_module(self, *_: Any) -> None:
        """Nothing was loaded."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 1, "warpSize": 32}


class _Launcher:
    def __init__(self, driver: EmulatedDriver, source: Any, metadata: Any) -> None:
        self.driver, self.metadata = driver, metadata
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
        kernel = _parsed(self.driver.mutate(self.ptx))
        scratch = [0] * (len(kernel.params) - len(values))  # global and profile scratch: unused
        memory = Memory(self.driver._poison)
        machine = Machine(kernel, (x, y, z), values + scratch, memory, self.metadata.shared)
        machine.run()
        self.driver.launches.append(Launch(kernel.name, memory.traffic, dict(machine.executed)))


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Kernel:
    return parse(text)


def activate(capability: int) -> EmulatedDriver:
    """Makes the emulator Triton's active driver."""
    driver = EmulatedDriver(capability)
    triton.runtime.driver.set_active(driver)
    return driver
