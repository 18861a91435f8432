"""Phase: steps beside other libraries', the device's time and Python's, and as replayed graphs."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.device import ceilings
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.phase import main
from spectramind_fused.bench.contenders import OURS, Contender
from spectramind_fused.bench.gpu_contenders import GPU_PEERS
from spectramind_fused.bench.measure import giver
from spectramind_fused.bench.programs import PROGRAMS, Step
from spectramind_fused.bench.timing import WARM_UP, Spread
from spectramind_fused.bench.workloads import WORKLOADS, Workload, llama
from spectramind_fused.optim import OPTIMIZERS

MODELS = {
    **WORKLOADS,
    "llama1b": Workload("Llama 3.2 1B", llama(16, 2048, 8192, 512, tied=True)),
    "llama8b": Workload("Llama 3.1 8B", llama(32, 4096, 14336, 1024, tied=False)),
}
SAMPLES = 15


class Case(NamedTuple):
    """What is compared: model, dtype, program, optimizer; and does torch compile for minutes."""

    model: str
    dtype: str
    program: str
    optimizer: str = "AdamW"
    compiled: bool = False


# What matters most first: whatever is not reached in time is missing, and the JSON says so.
CASES = (
    Case("gpt2", "float32", "step"),
    Case("gpt2", "bfloat16", "step"),
    Case("gpt2", "float32", "amp_tail"),
    Case("gpt2", "float32", "storages"),
    Case("gpt2", "bfloat16", "storages"),
    Case("llama1b", "float32", "step"),
    Case("llama1b", "bfloat16", "step"),
    Case("llama8b", "bfloat16", "step"),
    Case("tiny", "float32", "step"),
    *(
        Case("gpt2", "float32", "step", kind)
        for kind in OPTIMIZERS
        if kind not in ("AdamW", "Muon")
    ),
    Case("decoder", "float32", "step", "Muon"),
    Case("resnet50", "float32", "step"),
    Case("gpt2", "float32", "tail"),
    Case("gpt2", "bfloat16", "amp_tail"),
    Case("llama1b", "float32", "amp_tail"),
    Case("llama1b", "bfloat16", "tail"),
    Case("tiny", "float32", "amp_tail"),
    Case("resnet50", "float32", "amp_tail"),
    Case("tiny", "bfloat16", "step"),
    Case("resnet50", "bfloat16", "step"),
    Case("gpt2", "float32", "step", compiled=True),
    Case("gpt2", "bfloat16", "step", compiled=True),
)
_PLAYED = (
    Case("gpt2", "float32", "step"),
    Case("gpt2", "bfloat16", "tail"),
    Case("gpt2", "bfloat16", "storages"),
    Case("gpt2", "float32", "step", "NAdam"),
)
_PLAYED_PEERS = ("torch, fused", "torch, foreach")
_COMPILE = ("torchao",)  # by themselves, at their first step


def run(gpu: Any, findings: Findings) -> None:
    """Every case, its figures kept as soon as it has ended."""
    warnings.simplefilter("ignore")  # of libraries that are only timed
    logging.disable(logging.WARNING)
    size = gpu.pick(1 << 30, 1 << 16)
    findings.set(ceilings=ceilings(gpu, size), facts=gpu.facts())
    cases = gpu.pick(CASES, _PLAYED)
    findings.set(left=[case._asdict() for case in cases])
    for number, case in enumerate(cases, 1):
        rows, absent = measured(gpu, case, findings.held["ceilings"])
        findings.set(
            rows=[*findings.held.get("rows", []), *rows],
            absent=[*findings.held.get("absent", []), *absent],
            left=[later._asdict() for later in cases[number:]],
        )
        if not any(row["contender"] == OURS.name for row in rows):
            why = [each["why"] for each in absent if each["contender"] == OURS.name]
            findings.problem(f"our own step did not run in {'-'.join(map(str, case))}: {why}")
    for row in findings.held.get("rows", []):
        served = row["backend"]  # None: it is inside a scaler's step
        if row["contender"] == OURS.name and served not in (None, "triton", "cuda"):
            findings.problem(f"{served} served {row['model']}, {row['dtype']}: no kernel of ours")


def measured(gpu: Any, case: Case, ceiling: dict[str, float]) -> tuple[list[Any], list[Any]]:
    """One case, its contenders one after the other: a large model has memory for one optimizer.

    Args:
        gpu: where.
        case: what.
        ceiling: bytes per second, as measured in the same run.

    Returns:
        The figures of who took part, and of each who did not why.
    """
    model = gpu.pick(MODELS[case.model], Workload("played", [(9,), (1030,), (3, 5)]))
    params = _parameters(gpu, model, getattr(torch, case.dtype))
    rows: list[dict[str, Any]] = []
    absent: list[dict[str, Any]] = []
    label = {"model": model.name, "tensors": len(params), "parameters": model.parameters}
    label |= {"dtype": case.dtype, "program": case.program, "optimizer": case.optimizer}
    steps = PROGRAMS[case.program].steps(case.optimizer, params, _peers(gpu, case))
    for step in _one_by_one(steps, absent):
        for name, graph in ((step.name, False), (f"{step.name}, graph", True)):
            if graph and not step.capturable:
                continue
            try:
                figures = _timed(gpu, case, step, params, graph)
            except Exception as error:  # out of memory, or whatever a library raises
                absent.append({"contender": name, "why": _said(error)})
                continue
            share = figures["bytes"] / ceiling["copy"] / (figures["median_ms"] / 1e3)
            who = {"version": step.contender.version(), "backend": _served(step)}
            rows.append({**label, "contender": name, **who, **figures, "of_copy_bandwidth": share})
        del step
        gc.collect()
        gpu.free()
    return rows, [{**label, **each} for each in absent]


def _peers(gpu: Any, case: Case) -> list[Contender]:
    peers = [
        peer for peer in GPU_PEERS if (peer.compiled or peer.package in _COMPILE) == case.compiled
    ]
    if case.compiled:
        return peers
    return gpu.pick(peers, [peer for peer in peers if peer.name in _PLAYED_PEERS])


def _parameters(gpu: Any, model: Workload, dtype: torch.dtype) -> list[Tensor]:
    gc.collect()
    gpu.free()
    torch.manual_seed(0)
    params = [
        torch.randn(shape, device=gpu.device, dtype=dtype).mul_(0.02).requires_grad_()
        for shape in model.shapes
    ]
    for p in params:
        p.grad = torch.randn_like(p).mul_(1e-3)
    return params


def _one_by_one(steps: Iterator[Any], absent: list[dict[str, Any]]) -> Iterator[Step]:
    """Those that can be built; of the others it is noted why not."""
    while True:
        try:
            made = next(steps)
        except StopIteration:
            return
        except Exception as error:  # the rest of this case is lost, the next is not
            absent.append({"contender": "those that follow", "why": _said(error)})
            return
        if isinstance(made, Step):
            yield made
        else:
            absent.append({"contender": made[0], "why": made[1]})
        del made


def _timed(gpu: Any, case: Case, step: Step, params: list[Tensor], graph: bool) -> dict[str, Any]:
    what = PROGRAMS[case.program]
    prepare = step.before or giver(what, params)
    prepare()
    for _ in range(WARM_UP):
        step.run()
    run = gpu.graph(step.run) if graph else step.run
    clock, taken = gpu.clock(), []
    for _ in range((gpu.pick(SAMPLES, 2) + 1) * what.cycle):
        prepare()
        taken.append(clock.time(run))
    times = list(map(clock.milliseconds, taken))[what.cycle :]
    of_cycles = [
        sum(times[i : i + what.cycle]) / what.cycle for i in range(0, len(times), what.cycle)
    ]
    device, host = Spread.of(of_cycles), Spread.of(clock.host[what.cycle :])
    return {
        "low_ms": device.low, "median_ms": device.median, "high_ms": device.high,
        "host_low_ms": host.low, "host_median_ms": host.median, "host_high_ms": host.high,
        "samples": len(of_cycles), "bytes": step.traffic.total,
    }  # fmt: skip


def _served(step: Step) -> str | None:
    """Which backend stepped, where it is ours and not inside a scaler's step."""
    owner = getattr(step.run, "__self__", None)
    return next(iter(owner.backends().values()), None) if hasattr(owner, "backends") else None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


if __name__ == "__main__":
    main(run)
