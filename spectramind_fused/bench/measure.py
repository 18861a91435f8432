"""One comparison: a workload, an optimizer, a dtype and a program, timed on one device."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.bench.contenders import PEERS
from spectramind_fused.bench.programs import PROGRAMS, Program, Step
from spectramind_fused.bench.timing import MemoryProbe, Probe, Spread, interleaved, recorded
from spectramind_fused.bench.workloads import Workload
from spectramind_fused.version import __version__

SAMPLES = 15


class Row(NamedTuple):
    """One contender in one comparison; what a line of the CSV holds.

    Attributes:
        device: processor or GPU, and how many threads.
        versions: Python, torch, this package.
        contender_version: of the contender's package.
        date: of the measurement.
        workload: its name.
        tensors: how many.
        parameters: how many elements.
        optimizer: "AdamW" and so on.
        dtype: of parameters, gradients and states.
        program: a key of PROGRAMS.
        contender: its name.
        low_ms: first quartile.
        median_ms: second quartile.
        high_ms: third quartile.
        bytes_per_parameter: read and written.
        of_memory_limit: the time that those bytes need at the memory bandwidth measured in the
            same run, divided by the median time.
    """

    device: str
    versions: str
    contender_version: str
    date: str
    workload: str
    tensors: int
    parameters: int
    optimizer: str
    dtype: str
    program: str
    contender: str
    low_ms: float
    median_ms: float
    high_ms: float
    bytes_per_parameter: float
    of_memory_limit: float


class Comparison(NamedTuple):
    """What was measured.

    Attributes:
        rows: one for each contender.
        samples: of each contender, in milliseconds per step.
        absent: who did not take part, and why.
    """

    rows: list[Row]
    samples: dict[str, list[float]]
    absent: dict[str, str]


def compare(
    workload: Workload,
    kind: str = "AdamW",
    dtype: torch.dtype = torch.float32,
    program: str = "step",
    device: torch.device | None = None,
    samples: int = SAMPLES,
    compiled: bool = True,
    probe: Probe | None = None,
) -> Comparison:
    """Times everyone who can run a program.

    Args:
        workload: the shapes.
        kind: of the optimizer, a key of `OPTIMIZERS`.
        dtype: of parameters, gradients and states.
        program: a key of PROGRAMS.
        device: where; None takes a GPU if there is one.
        samples: how many to take of each contender.
        compiled: whether those take part whose steps torch first compiles, for minutes.
        probe: of the memory; None for operators of torch's.
    """
    device = default_device() if device is None else device
    what = PROGRAMS[program]
    gc.collect()  # what an earlier comparison held
    torch.manual_seed(0)
    params = [
        (0.02 * torch.randn(shape, device=device)).to(dtype).requires_grad_()
        for shape in workload.shapes
    ]
    for p in params:
        p.grad = 1e-3 * torch.randn_like(p)
    give = giver(what, params)
    contenders: list[Step] = []
    absent: dict[str, str] = {}
    peers = [peer for peer in PEERS if compiled or not peer.compiled]
    for each in what.steps(kind, params, peers):
        if isinstance(each, Step):
            contenders.append(each)
        else:
            absent[each[0]] = each[1]
    probe = probe or MemoryProbe(device)
    before = {each.name: each.before for each in contenders}
    steps: dict[str, Callable[[], Any]] = {each.name: each.run for each in contenders}
    if device.type == "cuda":
        steps |= {f"{c.name}, graph": recorded(c.run) for c in contenders if c.capturable}

    def prepare(name: str) -> None:
        (before.get(name) or give)()

    taken = interleaved({**steps, **probe.steps}, device, samples, what.cycle, prepare)
    by_name = {each.name: each for each in contenders}
    rows = []
    for name in steps:
        step = by_name[name.removesuffix(", graph")]
        spread = Spread.of(taken[name])
        rows.append(
            Row(
                device=device_name(device),
                versions=versions(),
                contender_version=step.contender.version(),
                date=date.today().isoformat(),
                workload=workload.name,
                tensors=len(params),
                parameters=workload.parameters,
                optimizer=kind,
                dtype=str(dtype).removeprefix("torch."),
                program=program,
                contender=name,
                low_ms=spread.low,
                median_ms=spread.median,
                high_ms=spread.high,
                bytes_per_parameter=step.traffic.total / workload.parameters,
                of_memory_limit=probe.limit(taken, step.traffic) / spread.median,
            )
        )
    return Comparison(rows, {name: taken[name] for name in steps}, absent)


def giver(program: Program, params: list[Tensor]) -> Callable[[], Any]:
    """What gives the gradients that a program asks for."""
    if program.gradients == "kept":
        return lambda: None
    grads = [p.grad for p in params if p.grad is not None]
    if program.gradients == "given":

        def refill() -> None:
            torch._foreach_zero_(grads)
            torch._foreach_add_(grads, 1e-3)

        return refill

    def backward() -> None:
        for p in params:
            p.grad = None
        torch.autograd.backward([p * 1.0 for p in params], grads)

    return backward


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """What the figures were seen on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{name}, {platform.machine()}, {torch.get_num_threads()} threads"


def versions() -> str:
    """What the figures were seen with."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, {__version__}"
