"""A model of which binds a kernel: the instructions that it issues, or the bytes that it moves.

A scheduler issues one warp instruction per clock, and a pipe of few lanes needs several clocks for
one. So a turn of the loop takes as long as all its issues, or as its busiest pipe. Beside it stands
the time that the turn's bytes need at the whole bandwidth of the data sheet. Latencies, what comes
before and after the loop, and clocks below the boost clock are left out; where a rate is not
published, the slower one is taken. Nothing of this has been measured.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from benchmarks.device_code.sass import Code
from benchmarks.device_code.turn import Turn, full_chunk_turn
from benchmarks.projection import BANDWIDTH

SCHEDULERS = 4  # of a multiprocessor, on all of these GPUs
LANES_OF_A_WARP = 32
ISSUE = "issue"

# Which opcodes keep which pipe busy. The pipes are those of Nsight Compute's documentation. FCHK
# has no published one; ptxas waits for it as for MUFU. An IMAD takes the half of the FP32 pipe that
# multiplies integers. Accesses, branches and uniform registers take nothing but their issue here;
# everything else takes the ALU.
_PIPES = {
    "FP32": r"FADD|FMUL|FFMA|IMAD|IMUL",
    "IMAD": r"IMAD|IMUL",
    "FP16": r"H(?:ADD2|MUL2|FMA2|SETP?2|MNMX2)",
    "FP64": r"D(?:ADD|MUL|FMA|SETP|MNMX)",
    "XU": r"MUFU|FCHK|F2[FI]|I2F|FRND|FLO|POPC|BREV",
}
_ISSUE_ALONE = r"LD\w*|ST\w*|U[A-Z]\w+|R2UR|S2UR|BRA|BSSY|BSYNC|BREAK|CALL|BAR|WARPSYNC|NOP"
_CONVERTS_64_BITS = r"(?:F2F|F2I|I2F)\.(?:\S*\.)?[FSU]64\b"


class Gpu(NamedTuple):
    """What the model knows of a GPU.

    Attributes:
        name: as NVIDIA calls it.
        multiprocessors: how many.
        clock: Hz, the boost clock.
        bandwidth: bytes per second.
        lanes: results per clock of each pipe of a multiprocessor.
        converts: the pipe that converts from and to 64 bits.
    """

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float
    lanes: dict[str, int]
    converts: str


# From NVIDIA's white papers of the A100, the H100 and Ada, and the data sheet of the L40S:
# multiprocessors, bandwidth, the boost clock, and lanes, which with the clock make the published
# TFLOPS. (The H100's clock is the one without tensor cores; with them it is 1.83 GHz.) FP16 counts
# a pair of 16 bits as one. The XU's 16 lanes are in the CUDA C++ Programming Guide, "Throughput of
# Native Arithmetic Instructions". Conversions from and to 64 bits are taken to be the XU's where
# FP64 is fast, and FP64's where it is slow.
GPUS = {
    "sm_80": Gpu("A100", 108, 1.41e9, BANDWIDTH["A100"],
                 {"FP32": 64, "IMAD": 64, "ALU": 64, "FP16": 128, "FP64": 32, "XU": 16}, "XU"),
    "sm_89": Gpu("L40S", 142, 2.52e9, 864e9,
                 {"FP32": 128, "IMAD": 64, "ALU": 64, "FP16": 64, "FP64": 2, "XU": 16}, "FP64"),
    "sm_90": Gpu("H100", 132, 1.98e9, BANDWIDTH["H100"],
                 {"FP32": 128, "IMAD": 64, "ALU": 64, "FP16": 128, "FP64": 64, "XU": 16}, "XU"),
}  # fmt: skip


class Rate(NamedTuple):
    """What one step of a kernel needs on a GPU, by the model.

    Attributes:
        step: which one, where the kernel takes several.
        warp_instructions: for 32 elements, as many as a warp has lanes.
        busiest: the pipe that is longest at work, or "issue".
        issue_ps: picoseconds per element that the schedulers and the busiest pipe need.
        bytes_ps: picoseconds per element that the bytes need.
        binds: what takes longer: "bytes", or the busiest.
    """

    step: str
    warp_instructions: float
    busiest: str
    issue_ps: float
    bytes_ps: float
    binds: str


def rates(row: dict[str, Any], code: Code, steps: dict[str, float]) -> list[Rate]:
    """Every step of a kernel, on the GPU of its architecture; none where that is not in GPUS.

    Args:
        row: what says which kernel it is, "arch" among it.
        code: its instructions.
        steps: names of steps, and the bytes per element of each.

    Raises:
        ValueError: the loop is not found in it, or moves other bytes.
    """
    gpu = GPUS.get(row["arch"])
    if gpu is None or not steps:
        return []
    try:
        turns = {
            step: full_chunk_turn(code, moved, max(steps.values())) for step, moved in steps.items()
        }
    except ValueError as reason:
        keys = ("backend", "kernel", "rule", "states", "dtype", "arch")
        name = " ".join(str(row[key]) for key in keys if key in row)
        raise ValueError(f"{name}: {reason}") from None
    return [rate(step, turns[step], moved, gpu) for step, moved in steps.items()]


def assumed(arch: str) -> str:
    """What the model says of one GPU, in words."""
    gpu = GPUS[arch]
    lanes = ", ".join(f"{pipe} {count}" for pipe, count in gpu.lanes.items())
    return (
        f"Model of an {gpu.name}: {gpu.multiprocessors} multiprocessors of {SCHEDULERS} schedulers "
        f"at {gpu.clock / 1e9:g} GHz, {gpu.bandwidth / 1e9:,.0f} GB/s; lanes per multiprocessor: "
        f"{lanes}.\nThe loop of full chunks alone, on its common path: no division or root takes "
        "its slow path. Latencies are left out; 1 ps per element is 1 ms for 1e9 elements."
    )


def busy(turn: Turn, gpu: Gpu) -> dict[str, float]:
    """Clocks of a scheduler for a warp's turn: those that issue it, those of each pipe."""
    clocks = {ISSUE: float(turn.issued.total())} | dict.fromkeys(gpu.lanes, 0.0)
    for opcode, count in turn.issued.items():
        for pipe in _pipes(opcode, gpu):
            clocks[pipe] += count * LANES_OF_A_WARP * SCHEDULERS / gpu.lanes[pipe]
    return clocks


def rate(step: str, turn: Turn, moved: float, gpu: Gpu) -> Rate:
    """Both times of a step.

    Args:
        step: its name.
        turn: of its loop.
        moved: bytes per element.
        gpu: where.
    """
    clocks = busy(turn, gpu)
    busiest = max(clocks, key=lambda pipe: clocks[pipe])
    elements = turn.elements * LANES_OF_A_WARP * SCHEDULERS * gpu.multiprocessors
    issue_ps = 1e12 * clocks[busiest] / (elements * gpu.clock)
    bytes_ps = 1e12 * moved / gpu.bandwidth
    binds = "bytes" if bytes_ps >= issue_ps else busiest
    instructions = turn.issued.total() / turn.elements
    return Rate(step, instructions, busiest, issue_ps, bytes_ps, binds)


def _pipes(opcode: str, gpu: Gpu) -> list[str]:
    if re.match(_CONVERTS_64_BITS, opcode):
        return [gpu.converts]
    name = opcode.split(".")[0]
    if re.fullmatch(_ISSUE_ALONE, name):
        return []
    return [pipe for pipe, names in _PIPES.items() if re.fullmatch(names, name)] or ["ALU"]
