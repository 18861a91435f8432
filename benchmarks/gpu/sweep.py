"""Phase: chunk, block, warps and registers, one varied at a time; and which backend is faster."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.faults import planted
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.phase import main
from benchmarks.gpu.profiled import TAIL
from benchmarks.gpu.times import MODELS
from spectramind_fused import FusedAdamW
from spectramind_fused.bench.workloads import Workload
from spectramind_fused.kernels import cuda, triton

SAMPLES = 15
# The first of each is what the kernels are built with; the others are tried one at a time.
TRITON = {
    "chunk": (8192, 4096, 16384, 32768, 65536),
    "block": (1024, 512, 2048, 4096),
    "warps": (4, 2, 8),
    "registers": (80, 64, 72, 96, 128, 255),
}
CUDA = {"chunk": (8192, 2048, 4096, 16384, 32768, 65536)}
_CASES = tuple((d, p) for d in ("float32", "bfloat16") for p in ("step", "tail"))
_MODELS = ("gpt2", "resnet50", "tiny", "llama1b")


def run(gpu: Any, findings: Findings) -> None:
    """First which backend `auto` should prefer, then the sweeps."""
    if gpu.played and planted("sweep"):
        raise RuntimeError("CUDA error: misaligned address (planted)")
    for model in gpu.pick(_MODELS, _MODELS[:1]):
        for dtype, program in gpu.pick(_CASES, _CASES[:1]):
            shapes = gpu.pick(MODELS[model], Workload("played", [(1030,), (17,)]))
            found = {b: _time(gpu, shapes, dtype, program, b) for b in gpu.backends()}
            findings.add("backends", {"model": model, "dtype": dtype, "program": program, **found})
    if len(gpu.backends()) == 2:
        findings.set(auto=preferred(findings.held["backends"]))
    large = Workload("one tensor", gpu.pick([(200_000_000,)], [(9000,)]))
    for dtype, program in gpu.pick(_CASES, _CASES[:1]):
        for backend, grid in (("triton", TRITON), ("cuda", CUDA)):
            if backend not in gpu.backends():
                continue
            for choice in _choices(gpu.pick(grid, {n: v[:2] for n, v in list(grid.items())[:2]})):
                label = {"backend": backend, "dtype": dtype, "program": program, **choice}
                try:
                    with _with(backend, choice):
                        taken = _time(gpu, large, dtype, program, backend)
                except Exception as error:  # too many registers for a block, for one
                    findings.add("sweep", {**label, "why_not": f"{type(error).__name__}: {error}"})
                else:
                    findings.add("sweep", {**label, **taken})
    findings.set(best=best(findings.held["sweep"]))


def preferred(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Which of the two took less time, as the geometric mean over all cases."""
    ratios = [row["cuda"]["median_ms"] / row["triton"]["median_ms"] for row in rows]
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    return {"cuda_over_triton": mean, "should_prefer": "triton" if mean >= 1 else "cuda"}


def best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fastest choice of each backend, dtype and program."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        key = row["backend"], row["dtype"], row["program"]
        if "median_ms" in row and row["median_ms"] < found.get(key, row)["median_ms"]:
            found[key] = row
        elif "median_ms" in row:
            found.setdefault(key, row)
    return list(found.values())


def _choices(grid: dict[str, tuple[int, ...]]) -> Iterator[dict[str, int]]:
    built = {name: values[0] for name, values in grid.items()}
    yield built
    for name, values in grid.items():
        for value in values[1:]:
            yield {**built, name: value}


@contextmanager
def _with(backend: str, choice: dict[str, int]) -> Iterator[None]:
    """The kernels with other constants than they are built with."""
    if backend == "cuda":
        with patch.object(cuda, "_CHUNK", choice["chunk"]):
            yield
        return
    original = triton.update_constants

    def constants(*args: Any, **kwargs: Any) -> dict[str, Any]:
        chosen = {"CHUNK": choice["chunk"], "BLOCK": choice.get("block", triton.BLOCK)}
        chosen |= {"num_warps": choice.get("warps", 4)}
        if "registers" in choice:
            chosen["maxnreg"] = choice["registers"]
        return {**original(*args, **kwargs), **chosen}

    with (
        patch.object(triton, "CHUNK", choice["chunk"]),
        patch.object(triton, "update_constants", constants),
    ):
        yield


def _time(gpu: Any, model: Workload, dtype: str, program: str, backend: str) -> dict[str, float]:
    gpu.free()
    params = [
        torch.randn(shape, device=gpu.device, dtype=getattr(torch, dtype)).requires_grad_()
        for shape in model.shapes
    ]
    for p in params:
        p.grad = torch.randn_like(p)
    # Gradients are not zeroed: they are to be the same at every step.
    options = {**TAIL, "zero_grads": False} if program == "tail" else {}
    optimizer = FusedAdamW(params, backend=backend, **options)
    clock = gpu.clock()
    taken = [clock.time(optimizer.step) for _ in range(gpu.pick(SAMPLES, 2) + 3)][3:]
    times = list(map(clock.milliseconds, taken))
    return {"median_ms": statistics.median(times), "host_ms": statistics.median(clock.host[3:])}


if __name__ == "__main__":
    main(run)
