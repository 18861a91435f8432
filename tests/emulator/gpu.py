"""The emulated GPU: what launches go to, whoever compiled the kernel."""

from __future__ import annotations

import functools

import numpy as np
import torch

from tests.emulator.machine import Machine
from tests.emulator.memory import Memory, Traffic
from tests.emulator.ptx import Kernel, parse


class Launch:
    """What one launch did."""

    def __init__(self, name: str, traffic: Traffic, executed: dict[str, int]) -> None:
        self.name, self.traffic, self.executed = name, traffic, executed


class EmulatedGPU:
    """Serves CPU tensors as a GPU of a given compute capability would.

    Attributes:
        launches: what was launched, in order.
        instructions: how many blocks ran in all launches there ever were.
        mutate: called with each kernel's PTX before it runs; tests plant bugs there.
    """

    def __init__(self, capability: int) -> None:
        self.capability, self.instructions = capability, 0
        self.forget()

    def poison(self, tensor: torch.Tensor) -> None:
        """Marks a tensor's bytes as unwritten: loading one before a store is a fault."""
        self._kept.append(tensor)
        size = tensor.numel() * tensor.element_size()
        self._poison[tensor.data_ptr()] = np.ones(size, bool)

    def forget(self) -> None:
        """Forgets launches, poison and planted bugs."""
        self.launches: list[Launch] = []
        self._poison: dict[int, np.ndarray] = {}
        self._kept: list[torch.Tensor] = []
        self.mutate = lambda text: text

    def kernel(self, text: str) -> Kernel:
        """The kernel that a PTX text holds, with the bug that a test planted."""
        return _parsed(self.mutate(text))

    def launch(
        self,
        name: str,
        kernel: Kernel,
        grid: tuple[int, int, int],
        arguments: list[int | bytes],
        shared_bytes: int = 0,
    ) -> None:
        """Runs a kernel to its end; it is remembered under `name`."""
        memory = Memory(self._poison)
        machine = Machine(kernel, grid, arguments, memory, shared_bytes)
        machine.run()
        self.instructions += sum(machine.executed.values())
        self.launches.append(Launch(name, memory.traffic, dict(machine.executed)))


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Kernel:
    return parse(text)
