"""Times every optimizer's step, and the whole tail, beside torch's and other libraries'.

make bench
python -m pytest benchmarks/test_throughput.py -k "gpt2 and AdamW and step"
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import warnings
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks.host import HOST_CASES, host_times
from benchmarks.streams import Streams
from spectramind_fused.bench.contenders import KAHAN, OURS, PEERS, WITHOUT_KERNELS
from spectramind_fused.bench.measure import SAMPLES, compare
from spectramind_fused.bench.programs import PROGRAMS, STORED, K
from spectramind_fused.bench.report import write_rows
from spectramind_fused.bench.workloads import WORKLOADS
from spectramind_fused.optim import OPTIMIZERS

RESULTS = Path(__file__).parent / "results.csv"


class Case(NamedTuple):
    """What is compared."""

    workload: str
    kind: str
    dtype: str
    program: str

    def __str__(self):
        return "-".join(self)


CASES = [
    *(
        Case(w, "AdamW", "float32", p)
        for w, p in product(WORKLOADS, ("step", "tail", "amp_tail"))
        if w != "decoder"
    ),
    *(Case(w, "AdamW", "float32", "lookahead") for w in ("gpt2", "tiny")),
    *(Case(w, "AdamW", "float32", "backward") for w in ("tiny", "small")),
    Case("tiny", "AdamW", "float32", "participants"),
    *(Case("gpt2", "AdamW", dtype, "storages") for dtype in ("float32", "bfloat16")),
    Case("gpt2", "AdamW", "float16", "step"),
    *(Case(w, "AdamW", "bfloat16", "step") for w in ("resnet50", "gpt2", "tiny")),
    Case("gpt2", "AdamW", "bfloat16", "amp_tail"),
    *(
        Case(w, kind, "float32", p)
        for kind, info in OPTIMIZERS.items()
        if kind != "AdamW" and not info.of_matrices
        for w, p in (("gpt2", "step"), ("tiny", "step"))
    ),
    *(Case("decoder", kind, "float32", "step") for kind, i in OPTIMIZERS.items() if i.of_matrices),
]


def contenders(program):
    """The names of all who may take part."""
    if program == "lookahead":
        whose = f"pytorch_optimizer's over torch, fused, k = {K}"
        return [f"{OURS.name}, off", f"{OURS.name}, between syncs", f"{OURS.name}, k = {K}", whose]
    if program == "participants":
        return [f"{OURS.name}, the same", f"{OURS.name}, others at every step"]
    if program == "storages":
        ours = [
            f"{OURS.name}, {stored}".removesuffix(", ") for of in STORED.values() for stored in of
        ]
        return [*dict.fromkeys(ours), "torch, fused", KAHAN.name]
    names = [OURS.name, *(peer.name for peer in PEERS)]
    names += [WITHOUT_KERNELS] if program == "step" else []
    if torch.cuda.is_available():
        names.append(f"{OURS.name}, cuda")
        names += [f"{name}, graph" for name in names]
    return names


@functools.lru_cache(maxsize=1)  # the tests of one case follow each other
def compared(case):
    """All contenders of a case, timed interleaved; the figures go into the CSV.

    In a process of its own: what earlier ones left in memory slows down many small tensors.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(_compared, (case,))
    write_rows(RESULTS, result.rows)
    return result


def _compared(case):
    logging.disable(logging.WARNING)  # of libraries that are only timed
    warnings.simplefilter("ignore")
    samples = SAMPLES if PROGRAMS[case.program].cycle == 1 else SAMPLES // 2
    dtype = getattr(torch, case.dtype)
    probe = None if torch.cuda.is_available() else Streams()
    return compare(
        WORKLOADS[case.workload], case.kind, dtype, case.program, samples=samples, probe=probe
    )


class Replay:
    """A clock for pytest-benchmark that goes on by what was taken.

    It times one function to its end before the next; ours were timed in turn.
    """

    def __init__(self, milliseconds):
        self.left = [ms / 1e3 for ms in milliseconds]
        self.now = 0.0
        self.begun = False

    def __call__(self):
        if self.begun:
            self.now += self.left.pop(0)
        self.begun = not self.begun
        return self.now


@pytest.fixture
def samples(request):
    """What one contender took; its clock is handed to the benchmark fixture, which comes later."""
    case, name = request.param
    result = compared(case)
    if name not in result.samples:
        pytest.skip(result.absent.get(name, "it does not run this program"))
    taken = result.samples[name]
    request.node.add_marker(pytest.mark.benchmark(group=str(case), timer=Replay(taken)))
    return taken


@pytest.mark.parametrize(
    "samples",
    [(case, name) for case in CASES for name in contenders(case.program)],
    ids=lambda given: f"{given[0]}: {given[1]}",
    indirect=True,
)
def test_throughput(samples, benchmark):
    """Hands what was taken to pytest-benchmark, which prints, stores and compares it."""
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)
    assert min(samples) > 0


@functools.lru_cache(maxsize=1)
def host_rows():
    """Python's time for steps on a GPU; the figures go into the CSV."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rows = pool.apply(host_times)
    write_rows(RESULTS, rows)
    return {(row.contender, row.workload, row.program): row.median_ms for row in rows}


@pytest.mark.parametrize("case", HOST_CASES, ids=lambda case: "-".join(map(str, case)))
def test_host(case, benchmark):
    """The median, as pytest-benchmark prints it; the kernels are replaced by nothing."""
    taken = host_rows()[f"{OURS.name}, {case.backend}", case.workload, case.program]
    benchmark._timer = Replay([taken])
    benchmark.pedantic(lambda: None, rounds=1, iterations=1)
    assert taken > 0
