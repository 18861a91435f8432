"""The GPU of this machine, as the phases ask for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from spectramind_fused.bench.timing import EventClock, recorded
from spectramind_fused.kernels import BACKENDS

T = TypeVar("T")
GPU_BACKENDS = ("triton", "cuda")
_ASKED = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "persistence_mode")


def missing() -> str:
    """Why there is nothing to measure here; empty where there is."""
    if torch.cuda.is_available():
        return ""
    return "torch finds no GPU that it can use here; --played runs everything but the GPU."


class RealGPU:
    """Runs everything where it is meant to run.

    Attributes:
        played: whether it only pretends.
        device: where tensors lie.
    """

    played = False
    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        if why := missing():
            raise SystemExit(f"benchmarks.gpu: {why}")
        torch.cuda.set_device(self.device)

    def backends(self) -> list[str]:
        """Those of ours for GPUs that run here."""
        return [name for name in GPU_BACKENDS if not BACKENDS[name].unavailable(self.device)]

    def facts(self) -> dict[str, Any]:
        """What the figures are of."""
        found = torch.cuda.get_device_properties(self.device)
        return {
            "name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "memory_bytes": found.total_memory,
            "l2_bytes": getattr(found, "L2_cache_size", None),
            "multiprocessors": found.multi_processor_count,
            "cuda_of_torch": torch.version.cuda,
            "nvidia_smi": _nvidia_smi(),
        }

    def archs(self) -> str:
        """What csrc is compiled for."""
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"{major}.{minor}+PTX"

    def pick(self, real: T, played: T) -> T:
        """What is meant here, or its small stand-in."""
        return real

    def clock(self) -> EventClock:
        """A new clock for one step."""
        return EventClock()

    def graph(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """Captures a step; returns its replay."""
        return recorded(step)

    def synchronize(self) -> None:
        """Waits for the GPU."""
        torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Gives back what is cached."""
        torch.cuda.empty_cache()

    def of_pytest(self) -> list[str]:
        """Which tests, and where they run."""
        folders = ("tests/gpu", "tests/optim", "tests/drop_in", "tests/compiled")
        return ["--device", "cuda", *folders]

    def tool(self, name: str) -> list[str] | None:
        """How one of NVIDIA's tools is called, or None where it is not installed."""
        homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
        folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
        found = shutil.which(name, path=os.pathsep.join(folders))
        nsight = sorted(Path("/opt/nvidia/nsight-compute").glob(f"*/{name}"))
        return [found] if found else [str(nsight[-1])] if nsight else None

    def program(self, module: str, *words: str) -> list[str]:
        """The words of a program that NVIDIA's tools look at."""
        return ["-m", module, *words]


def _nvidia_smi() -> dict[str, str]:
    words = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader", "--id=0"]
    try:
        run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return {"absent": str(error)}
    return dict(zip(_ASKED, map(str.strip, run.stdout.split(",")), strict=False))
