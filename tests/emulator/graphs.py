"""Streams and captured graphs of the emulated GPU, played by hand.

A capture records what a CUDA graph would: the raw arguments of each launch and the raw addresses of
each copy, and runs none of it. A replay runs them all; an address that no live tensor holds any
more is a fault, as it would be corruption on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spectramind_fused.multi_tensor import runtime
from tests.emulator.gpu import EmulatedGPU
from tests.emulator.memory import Memory, MemoryFault

_VIEWS = {"select", "slice", "view", "detach", "alias", "as_strided", "unsqueeze", "expand"}


class NotPlayed(RuntimeError):
    """An operation of torch that a played capture does not know."""


class PlayedGraph:
    """What was captured; `destroy` is what torch does when the last reference goes."""

    def __init__(self) -> None:
        self.nodes: list[Callable[[], None]] = []
        self.watch = _PlayedWatch()

    def replay(self) -> None:
        """Runs all of it, in order."""
        assert not self.watch.destroyed
        for node in self.nodes:
            node()

    def destroy(self) -> None:
        """Nobody can replay it any more."""
        self.watch.destroyed = True


class _PlayedWatch(runtime.Watch):
    def __init__(self) -> None:
        super().__init__(capture=1)
        self.destroyed = False

    def gone(self) -> bool:
        return self.destroyed


class PlayedRuntime(runtime.Runtime):
    """A runtime of CUDA whose device is the CPU.

    Attributes:
        current_stream: the number of the stream that is current.
        recorded: for each stream that a tensor was recorded on, the addresses of those tensors.
        pins: the sizes of the pinned memory that was asked for, in bytes.
    """

    def __init__(self, gpu: EmulatedGPU) -> None:
        self.gpu, self.graph = gpu, None
        self.current_stream = 0
        self.recorded: dict[int, list[int]] = {}
        self.pins: list[int] = []

    def serves(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def capturing(self, device: torch.device) -> bool:
        return self.graph is not None

    def watch(self, device: torch.device) -> runtime.Watch:
        assert self.graph is not None
        return self.graph.watch

    def stream(self, device: torch.device) -> int:
        return self.current_stream

    def record(self, tensor: Tensor) -> None:
        self.recorded.setdefault(self.current_stream, []).append(tensor.data_ptr())

    def pinned(self, size: int) -> Tensor:
        self.pins.append(size)
        return torch.empty(size, dtype=torch.uint8)

    @contextmanager
    def capture(self, reads: bool = False) -> Iterator[PlayedGraph]:
        """Captures what is launched and copied inside; nothing of it runs now.

        Args:
            reads: lets tensors be read, as those on the CPU are in a capture.
        """
        assert self.graph is None
        self.graph = graph = PlayedGraph()
        launch = self.gpu.launch

        def record(name: str, kernel: Any, grid: Any, arguments: Any, shared: int = 0) -> None:
            graph.nodes.append(lambda: launch(name, kernel, grid, list(arguments), shared))

        self.gpu.launch = record  # type: ignore[method-assign]
        try:
            with _RecordedCopies(graph, reads):
                yield graph
        finally:
            self.gpu.launch = launch  # type: ignore[method-assign]
            self.graph = None


class _RecordedCopies(TorchDispatchMode):
    def __init__(self, graph: PlayedGraph, reads: bool) -> None:
        super().__init__()
        self.graph = graph
        self.known = _VIEWS | {"_local_scalar_dense"} if reads else _VIEWS

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "copy_":
            to, source = args[:2]
            assert to.dtype == source.dtype
            assert to.is_contiguous()
            assert source.is_contiguous()
            self.graph.nodes.append(_copy(to.data_ptr(), source.data_ptr(), to.nbytes))
            return to
        if name not in self.known and func.namespace != "profiler":
            raise NotPlayed(f"a played capture knows no {name}")
        return func(*args, **(kwargs or {}))


def _copy(to: int, source: int, size: int) -> Callable[[], None]:
    def run() -> None:
        _check_alive(to, size)
        _check_alive(source, size)
        ctypes.memmove(to, source, size)

    return run


def _check_alive(address: int, size: int) -> None:
    memory, times = Memory(), 0
    while True:
        starts, ends = memory._arrays
        at = int(np.searchsorted(starts, address, "right")) - 1
        if at >= 0 and address + size <= int(ends[at]):
            return
        times += 1
        if not memory.refresh(times):
            raise MemoryFault(f"a copy of {size} bytes at {hex(address)} is inside no tensor")
