"""What Python takes for a step on a GPU, without one: the kernels are replaced by nothing.

The tests' emulator takes the first steps, so that everything is compiled. Then it is left out.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from datetime import date
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.streams import loops
from spectramind_fused.bench.contenders import OURS
from spectramind_fused.bench.measure import Row, device_name, versions
from spectramind_fused.bench.programs import ALPHA, DECAY, MAX_NORM, K
from spectramind_fused.bench.timing import Spread
from spectramind_fused.kernels import cuda
from spectramind_fused.optim import FusedAdamW
from spectramind_fused.version import __version__

_ELEMENTS = 8  # of each tensor: the emulator takes the first steps
_TAIL = {"clip_grad_norm": MAX_NORM, "lookahead_k": K, "lookahead_alpha": ALPHA, "ema_decay": DECAY}
_SAMPLES = 200


class HostCase(NamedTuple):
    """What is timed: a backend, how many tensors of which class, and whether the whole tail."""

    backend: str
    tensors: int
    split: bool
    program: str

    @property
    def workload(self) -> str:
        """As tables say it."""
        return f"{self.tensors:,} {'DTensors' if self.split else 'tensors'}"


HOST_CASES = [
    HostCase(backend, *what, program)
    for what in ((148, False), (2000, False), (2000, True))
    for program in ("host", "host_tail")
    for backend in ("triton", "cuda")
]


def host_times() -> list[Row]:
    """All cases, in a process that is theirs: it has an emulated GPU from now on."""
    from tests.emulator import cuda as emulated
    from tests.emulator import driver
    from tests.emulator.gpu import EmulatedGPU

    gpu = EmulatedGPU(90)
    driver.activate(gpu)
    emulated.activate(gpu, emulated.build())
    torch.set_num_threads(2)
    launch, library = driver._Launcher.__call__, cuda._library
    silent = _silent(library())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group("gloo", rendezvous, rank=0, world_size=1)
        for case in HOST_CASES:
            optimizer = _begun(case)
            driver._Launcher.__call__ = lambda *_: None  # type: ignore[method-assign]
            cuda._library = lambda: silent  # type: ignore[assignment]
            taken = _timed(optimizer)
            driver._Launcher.__call__, cuda._library = launch, library  # type: ignore[method-assign]
            rows.append(_row(case, Spread.of(taken)))
        torch.distributed.destroy_process_group()
    return rows


def _begun(case: HostCase) -> FusedAdamW:
    """An optimizer that has taken three steps."""
    tensors = [torch.randn(_ELEMENTS) for _ in range(case.tensors)]
    params = list(map(_split, tensors)) if case.split else [t.requires_grad_() for t in tensors]
    options = _TAIL if case.program == "host_tail" else {}
    optimizer = FusedAdamW(params, backend=case.backend, **options)
    for p in params:
        p.grad = torch.ones_like(p).detach()
    for _ in range(3):
        optimizer.step()
    return optimizer


def _split(tensor: Tensor) -> nn.Parameter:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    return nn.Parameter(DTensor.from_local(tensor, init_device_mesh("cpu", (1,)), [Shard(0)]))


def _silent(library: ctypes.CDLL) -> Any:
    """The CUDA library's launches, called as ever, doing nothing."""
    found = SimpleNamespace()
    for name in ("norm", "reduce", "advance", "update"):
        arguments = getattr(library, f"spectramind_{name}").argtypes
        nothing = ctypes.CFUNCTYPE(ctypes.c_int32, *arguments)(("nothing", loops()))
        setattr(found, f"spectramind_{name}", nothing)
    return found


def _timed(optimizer: FusedAdamW) -> list[float]:
    taken = []
    for _ in range(_SAMPLES):
        since = time.perf_counter()
        optimizer.step()
        taken.append(1e3 * (time.perf_counter() - since))
    return taken


def _row(case: HostCase, spread: Spread) -> Row:
    return Row(
        device=device_name(torch.device("cpu")),
        versions=versions(),
        contender_version=__version__,
        date=date.today().isoformat(),
        workload=case.workload,
        tensors=case.tensors,
        parameters=case.tensors * _ELEMENTS,
        optimizer="AdamW",
        dtype="float32",
        program=case.program,
        contender=f"{OURS.name}, {case.backend}",
        low_ms=spread.low,
        median_ms=spread.median,
        high_ms=spread.high,
        bytes_per_parameter=0.0,
        of_memory_limit=0.0,
    )
