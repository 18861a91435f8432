"""Phase: the bytes that ncu counts for each kernel, beside those that a step is said to move."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from typing import Any

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.phase import main
from benchmarks.gpu.profiled import KERNELS, cases
from benchmarks.gpu.runner import ROOT
from spectramind_fused.bench.traffic import Traffic, of_norm, of_update
from spectramind_fused.optim import OPTIMIZERS

ELEMENTS = 100_000_000  # many times any L2
METRICS = {
    "read_bytes": "dram__bytes_read.sum",
    "written_bytes": "dram__bytes_write.sum",
    "of_peak_bandwidth_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "nanoseconds": "gpu__time_duration.sum",
}
_TO_BASE = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "ns": 1, "nsecond": 1, "us": 1e3,
            "usecond": 1e3, "ms": 1e6, "msecond": 1e6}  # fmt: skip


def run(gpu: Any, findings: Findings) -> None:
    """One call of ncu over all cases; where it may not count, why."""
    tool = gpu.tool("ncu")
    if tool is None:
        findings.set(absent="ncu was not found on PATH, beside CUDA or in /opt/nvidia")
        return
    elements = gpu.pick(ELEMENTS, 9000)
    program = gpu.program("benchmarks.gpu.profiled", str(elements))
    words = [*tool, *options(), sys.executable, *program]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    said = ended.stdout + ended.stderr
    if "ERR_NVGPUCTRPERM" in said:
        findings.set(absent="the driver lets nobody but its administrator read counters")
        return
    launches = read(ended.stdout)
    of_cases = [(case, kernel) for case in cases(gpu) for kernel in KERNELS[case[2]]]
    if [kernel for kernel, _ in launches] != [kernel for _, kernel in of_cases]:
        seen = ", ".join(kernel for kernel, _ in launches) or "nothing"
        findings.problem(f"ncu counted {seen}, not {len(of_cases)} launches: {said[-1500:]}")
        return
    for (case, kernel), (_, counted) in zip(of_cases, launches, strict=True):
        label = dict(zip(("backend", "dtype", "program", "optimizer"), case, strict=True))
        beside = _beside(counted, expected(kernel, *case[1:]), elements)
        findings.add("kernels", {**label, "kernel": kernel, **beside})


def options() -> list[str]:
    """How ncu is asked: our kernels, with the cache flushed before each."""
    metrics = ["--metrics", ",".join(METRICS.values())]
    ours = ["--kernel-name-base", "function", "--kernel-name", "regex:^(norm|advance|update)$"]
    return [*metrics, "--csv", "--page", "raw", *ours]


def read(said: str) -> list[tuple[str, dict[str, float]]]:
    """The kernel and the metrics of each launch, in bytes, nanoseconds and percent.

    Args:
        said: what ncu printed: its own lines, then CSV whose second row holds the units.
    """
    begin = said.find('"ID"')
    if begin < 0:
        return []
    units, *launches = csv.DictReader(io.StringIO(said[begin:]))
    found = []
    for launch in launches:
        name = re.search(r"\b(norm|advance|update)\b", launch["Kernel Name"] or "")
        if name is None:
            continue
        values = {
            key: float(launch[metric].replace(",", "")) * _TO_BASE.get(units[metric], 1)
            for key, metric in METRICS.items()
            if re.match(r"[\d.]", launch.get(metric) or "")  # "n/a" where there is no such counter
        }
        found.append((name[0], values))
    return found


def expected(kernel: str, dtype: str, program: str, kind: str) -> Traffic | None:
    """Bytes per parameter by the formula that the emulator's counts are held to."""
    size = 4 if dtype == "float32" else 2
    if kernel == "norm":
        return of_norm(size)
    if kernel == "update":
        whole = program == "tail"
        states = OPTIMIZERS[kind].usual_states
        return of_update(states, size, syncs=float(whole), ema=whole, zero_grads=whole)
    return None


def _beside(counted: dict[str, float], formula: Traffic | None, elements: int) -> dict[str, Any]:
    moved = counted.get("read_bytes", 0) + counted.get("written_bytes", 0)
    seconds = counted.get("nanoseconds", 0) / 1e9  # 0 where it was not told
    return {
        **counted,
        "read_per_parameter": counted.get("read_bytes", 0) / elements,
        "written_per_parameter": counted.get("written_bytes", 0) / elements,
        "read_by_formula": formula.read if formula else None,
        "written_by_formula": formula.written if formula else None,
        "bytes_per_second": moved / seconds if seconds else None,
    }


if __name__ == "__main__":
    main(run)
