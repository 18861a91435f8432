"""The phases, what matters most first, and how long each may take."""

from __future__ import annotations

from typing import NamedTuple

BUDGET = 600  # seconds, of the first command and of `--deep`


class Phase(NamedTuple):
    """One part of the whole, run in a process of its own.

    Attributes:
        name: as `--only` and the JSON have it.
        module: runs as `python -m MODULE RESULT`, with `--played` where no GPU is.
        limit: seconds, then its processes are ended.
        deep: whether it belongs to `--deep`.
        what: it finds out, in a line.
    """

    name: str
    module: str
    limit: float
    deep: bool
    what: str


PHASES = (
    Phase("build", "benchmarks.gpu.building", 80, False, "compiles csrc/ for this GPU, in place"),
    Phase("device", "benchmarks.gpu.device", 30, False, "versions, backends, memory's ceilings"),
    Phase("correctness", "benchmarks.gpu.correctness", 240, False, "the tests, on the GPU"),
    Phase("time", "benchmarks.gpu.times", 200, False, "steps beside other libraries'"),
    Phase("traffic", "benchmarks.gpu.traffic", 50, False, "bytes that ncu counts"),
    Phase("sanitizer", "benchmarks.gpu.sanitizer", 265, True, "four tools of compute-sanitizer"),
    Phase("sweep", "benchmarks.gpu.sweep", 265, True, "chunks, blocks, warps, registers"),
)
