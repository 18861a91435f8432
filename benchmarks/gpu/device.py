"""Phase: what this GPU is, which backends run on it, and what its memory gives."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

import cuda_build
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.phase import main
from spectramind_fused import FusedAdamW
from spectramind_fused.kernels import BACKENDS

SIZES = (1 << 30, 1 << 32)  # bytes of an array: many times any L2
SAMPLES = 15


def run(gpu: Any, findings: Findings) -> None:
    """Facts first, then the ceilings."""
    findings.set(facts=gpu.facts(), **_backends(gpu))
    for name, why in findings.held["unavailable"].items():
        built = name == "triton" or (name == "cuda" and cuda_build.find_nvcc())
        if built and why:
            findings.problem(f"{name} does not run: {why}")
    for size in gpu.pick(SIZES, (1 << 16,)):
        findings.add("ceilings", {"bytes": size, **ceilings(gpu, size)})
        gpu.free()


def _backends(gpu: Any) -> dict[str, Any]:
    param = torch.ones(1000, device=gpu.device, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = FusedAdamW([param], backend=gpu.pick("auto", "triton"))
    optimizer.step()
    gpu.synchronize()
    unavailable = {name: backend.unavailable(gpu.device) for name, backend in BACKENDS.items()}
    return {"backends": optimizer.backends(), "unavailable": unavailable}


def ceilings(gpu: Any, size: int) -> dict[str, float]:
    """Bytes per second that one operator of torch's gets, reads and writes both counted."""
    source = torch.ones(size // 4, device=gpu.device)
    target = torch.empty_like(source)
    moves: dict[str, tuple[int, Callable[[], Any]]] = {
        "copy": (2 * size, lambda: target.copy_(source)),
        "read_modify_write": (2 * size, lambda: source.mul_(1.0)),
        "read": (size, source.sum),
        "write": (size, target.zero_),
    }
    found = {}
    for name, (moved, move) in moves.items():
        clock = gpu.clock()
        taken = [clock.time(move) for _ in range(gpu.pick(SAMPLES, 2) + 2)][2:]
        found[name] = 1e3 * moved / statistics.median(map(clock.milliseconds, taken))
    return found


if __name__ == "__main__":
    main(run)
