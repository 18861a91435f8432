"""What stands in for a GPU where there is none: CPU tensors, kernels on the tests' emulator.

It shows that the script runs to its end, and nothing of speed: whatever is timed here is the
emulator.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.gpu.faults import planted
from spectramind_fused.bench import programs
from spectramind_fused.bench.contenders import OURS, ours
from spectramind_fused.bench.timing import HostClock
from spectramind_fused.multi_tensor import runtime
from spectramind_fused.optim import FusedStep
from tests.emulator import cuda, driver
from tests.emulator.gpu import EmulatedGPU
from tests.emulator.graphs import NotPlayed, PlayedRuntime

T = TypeVar("T")
CAPABILITY = 90
# The least of each kind of test: with Triton and CUDA C++, in two dtypes, tests of tests/gpu.
TESTS = (
    "tests/gpu/test_bits.py",
    "tests/optim/test_zero_grads.py::test_gradients_stay_allocated_and_are_zero",
)


class PlayedClock(HostClock):
    """The emulator's time, which says nothing of a GPU's."""

    def __init__(self) -> None:
        self.host: list[float] = []

    def time(self, step: Callable[[], Any]) -> Any:
        taken = super().time(step)
        self.host.append(taken)
        return taken


class PlayedGPU:
    """Everything that `RealGPU` is asked, in small and on CPU tensors."""

    played = True
    device = torch.device("cpu")

    def __init__(self) -> None:
        if planted("build"):
            os.environ["CXX"] = "false"  # a compiler that fails
        self.emulated = EmulatedGPU(CAPABILITY)
        driver.activate(self.emulated)
        self.runtime = runtime.current = PlayedRuntime(self.emulated)
        if cuda.missing() is None:
            self._cudart = cuda.activate(self.emulated, cuda.build())
        programs.our_backends = _our_backends

    def backends(self) -> list[str]:
        return ["triton"] if cuda.missing() else ["triton", "cuda"]

    def facts(self) -> dict[str, Any]:
        return {"name": "no GPU: played on a CPU", "capability": "9.0", "l2_bytes": 0}

    def archs(self) -> str:
        return "9.0"

    def pick(self, real: T, played: T) -> T:
        return played

    def clock(self) -> PlayedClock:
        return PlayedClock()

    def graph(self, step: Callable[[], Any]) -> Callable[[], Any]:
        try:
            with self.runtime.capture() as graph:
                step()
        except NotPlayed:  # torch's own launches are not seen here
            return step
        return graph.replay

    def synchronize(self) -> None:
        if planted("device"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered (planted)")

    def free(self) -> None:
        self.emulated.forget()

    def of_pytest(self) -> list[str]:
        return [*TESTS, *(["benchmarks/gpu/played_test.py"] if planted("correctness") else [])]

    def tool(self, name: str) -> list[str] | None:
        return [sys.executable, "-m", "benchmarks.gpu.played_tools", name]

    def program(self, module: str, *words: str) -> list[str]:
        return ["-m", module, *words, "--played"]


def _our_backends(
    kind: str, params: list[Tensor], **extras: Any
) -> Iterator[tuple[str, FusedStep | str]]:
    """As on a GPU: Triton's kernels, then those in CUDA C++."""
    for name, backend in ((OURS.name, "triton"), (f"{OURS.name}, cuda", "cuda")):
        if planted("time"):
            yield name, "RuntimeError: CUDA error: unspecified launch failure (planted)"
            continue
        try:
            yield name, ours(kind, params, backend=backend, **extras)
        except ValueError as reason:
            yield name, str(reason)
