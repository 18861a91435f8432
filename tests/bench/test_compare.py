"""Comparisons: everyone does the same job, is timed in turn, and is written down."""

import csv
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import ClassVar

import pytest
import torch

from spectramind_fused.bench import programs, timing
from spectramind_fused.bench.contenders import (
    OURS,
    PEERS,
    Unavailable,
    lookahead_of_pytorch_optimizer,
    ours,
)
from spectramind_fused.bench.measure import compare
from spectramind_fused.bench.programs import ALPHA, PROGRAMS, K, torchs_passes
from spectramind_fused.bench.report import read_rows, write_rows
from spectramind_fused.bench.timing import Bandwidth, Spread, interleaved
from spectramind_fused.bench.traffic import Traffic
from spectramind_fused.bench.workloads import Workload
from spectramind_fused.optim import OPTIMIZERS

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that are only timed
CPU = torch.device("cpu")
FEW = Workload("few", [(64,), (3, 5), (1,), (4, 4)])


@pytest.fixture(autouse=True)
def _small_and_uncompiled(monkeypatch):
    """A probe that takes no time; compiling takes half a minute and is torch's business."""
    monkeypatch.setattr(timing, "_ELEMENTS", 1000)
    monkeypatch.setattr("spectramind_fused.bench.contenders.COMPILES_UP_TO", 0)


def fresh():
    torch.manual_seed(0)
    params = [torch.randn(shape, requires_grad=True) for shape in FEW.shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def after(params, step):
    """The weights after two cycles of Lookahead, with gradients that stay as they are."""
    grads = [p.grad.clone() for p in params]
    for _ in range(2 * K):
        for p, g in zip(params, grads, strict=True):
            p.grad.copy_(g)
        step()
    return [p.detach() for p in params]


def built(peer, kind, params):
    try:
        return peer.build(kind, params)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_everyones_step_is_the_same_step(kind, peer):
    """So nobody is timed who does less."""
    params, twins = fresh(), fresh()
    expected = after(params, ours(kind, params).step)
    seen = after(twins, built(peer, kind, twins).step)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen[0], fresh()[0])


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_everyones_tail_is_the_same_tail(peer, amp):
    params, twins = fresh(), fresh()
    first = next(iter(PROGRAMS["amp_tail" if amp else "tail"].steps("AdamW", params, PEERS)))
    expected = after(params, first.run)
    seen = after(twins, torchs_passes(built(peer, "AdamW", twins), twins, amp))
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)


def test_everyones_lookahead_is_the_same_lookahead():
    ends = {}
    for name in (f"{OURS.name}, k = {K}", f"pytorch_optimizer's over torch, fused, k = {K}"):
        params = fresh()
        try:
            optimizer = (
                ours("AdamW", params, lookahead_k=K, lookahead_alpha=ALPHA)
                if name.startswith(OURS.name)
                else lookahead_of_pytorch_optimizer(
                    torch.optim.AdamW(params, **OPTIMIZERS["AdamW"].usual), K, ALPHA
                )
            )
        except Unavailable as reason:
            pytest.skip(str(reason))
        ends[name] = after(params, optimizer.step)
    torch.testing.assert_close(*ends.values(), rtol=1e-4, atol=1e-5)


class OnAGPU:
    is_cuda = True


@pytest.mark.parametrize("runs", [True, False])
def test_on_a_gpu_the_cuda_kernels_are_timed_beside_triton(monkeypatch, runs):
    def ours(kind, params, backend="auto"):
        if backend == "cuda" and not runs:
            raise ValueError("nvcc was not found")
        return backend

    monkeypatch.setattr(programs, "ours", ours)
    seen = list(programs.our_backends("AdamW", [OnAGPU()]))
    expected = "cuda" if runs else "nvcc was not found"
    assert seen == [("spectramind_fused", "auto"), ("spectramind_fused, cuda", expected)]


def test_rows_say_what_was_timed(tmp_path):
    result = compare(FEW, "AdamW", torch.float32, "step", CPU, samples=3)
    row = next(r for r in result.rows if r.contender == OURS.name)
    assert (row.workload, row.tensors, row.parameters) == ("few", 4, 96)
    assert row.bytes_per_parameter == 28
    assert row.low_ms <= row.median_ms <= row.high_ms
    assert len(result.samples[OURS.name]) == 3
    assert result.absent["torch, foreach compiled"].startswith("torch.compile takes minutes")


def test_a_second_measurement_takes_the_place_of_the_first(tmp_path):
    path = tmp_path / "results.csv"
    first = compare(FEW, device=CPU, samples=2).rows
    other = compare(FEW, "SGD", device=CPU, samples=2).rows
    write_rows(path, first)
    write_rows(path, other)
    again = [row._replace(median_ms=123.0) for row in first]
    write_rows(path, again)
    rows = read_rows(path)
    assert len(rows) == len(first) + len(other)
    assert [r.median_ms for r in rows if r.optimizer == "AdamW"] == [123.0] * len(first)
    with path.open(newline="") as file:
        assert len(list(csv.reader(file))) == 1 + len(rows)
    elsewhere = [row._replace(device="another") for row in first]
    write_rows(path, elsewhere)
    assert len(read_rows(path)) == 2 * len(first) + len(other)


def test_a_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="holds other columns"):
        write_rows(path, [])
    assert path.read_text() == "a,b\n1,2\n"


def test_steps_run_in_turn_and_begin_with_another_each_time():
    ran = []
    steps = {name: lambda name=name: ran.append(name) for name in "abc"}
    taken = interleaved(steps, CPU, samples=2, cycle=2, prepare=lambda name: ran.append("-"))
    assert {name: len(times) for name, times in taken.items()} == {"a": 2, "b": 2, "c": 2}
    rounds = ["".join(ran)[i : i + 6] for i in range(0, len(ran), 6)]
    assert rounds[:4] == ["-a-b-c", "-b-c-a", "-c-a-b", "-a-b-c"]
    assert len(rounds) == 4 + 2 * 2  # a whole cycle, at least 3 rounds, to warm up


def test_a_sample_is_the_mean_over_a_cycle(monkeypatch):
    clock = count()
    durations = iter([9, 9, 9, 9, 1, 2, 5, 6])  # milliseconds
    now = [0.0]

    def perf_counter():
        if next(clock) % 2:
            now[0] += next(durations) / 1e3
        return now[0]

    monkeypatch.setattr(timing.time, "perf_counter", perf_counter)
    taken = interleaved({"a": lambda: None}, CPU, samples=2, cycle=2)
    assert taken["a"] == pytest.approx([1.5, 5.5])


class PlayedEvent:
    """Passes a millisecond after the one before it."""

    passed = 0
    waits: ClassVar = []

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        PlayedEvent.passed += 1
        self.at, self.waited = PlayedEvent.passed, False

    def synchronize(self):
        PlayedEvent.waits.append(self.at)
        self.waited = True

    def elapsed_time(self, end):
        assert end.waited
        return float(end.at - self.at)


def test_on_a_gpu_events_take_the_time_of_what_is_queued_while_it_sleeps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", PlayedEvent)
    monkeypatch.setattr(PlayedEvent, "waits", waits := [])
    log = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"))

    def step():
        log.append("step")
        assert not waits  # nothing is waited for until all have been launched

    taken = interleaved({"a": step, "b": step}, torch.device("cuda"), samples=4)
    assert taken == {"a": [1.0] * 4, "b": [1.0] * 4}
    assert log == ["synchronize", "sleep", "step"] * 2 * (timing.WARM_UP + 4)


def test_the_device_sleeps_for_longer_than_python_needs(monkeypatch):
    slept = []
    monkeypatch.setattr(torch.cuda, "Event", PlayedEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    ticks = count(step=0.02)  # 20 ms from one look at the clock to the next
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    clock = timing.EventClock()
    for _ in range(3):
        clock.time(lambda: None)
    assert clock.host == pytest.approx([20.0] * 3)
    assert slept == pytest.approx([2e6, 60e6, 60e6])  # cycles, 2e6 of a millisecond


def test_a_step_is_recorded_after_it_ran_on_another_stream(monkeypatch):
    log = []

    class Stream:
        def wait_stream(self, other):
            log.append("wait")

    class Graph:
        def replay(self):
            log.append("replay")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())

    @contextmanager
    def capture(graph):
        log.append("begin")
        yield
        log.append("end")

    monkeypatch.setattr(torch.cuda, "graph", capture)
    timing.recorded(lambda: log.append("step"))()
    assert log == ["wait", "step", "step", "step", "wait", "begin", "step", "end", "replay"]


def test_quartiles_and_the_limit_of_the_memory():
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert Spread.of([7.0]) == (7.0, 7.0, 7.0)
    # 12 in and out at 10 bytes a millisecond, 4 more in at 5
    assert Bandwidth(10.0, 5.0).limit(Traffic(16, 12)) == pytest.approx(24 / 10 + 4 / 5)


def test_who_moves_nothing_does_not_take_part():
    """Torch 2.13's fused SGD leaves bfloat16 parameters on a CPU where they were."""
    p = torch.zeros(64, dtype=torch.bfloat16, requires_grad=True)
    p.grad = torch.ones_like(p)
    torch.optim.SGD([p], lr=1.0, fused=True).step()
    result = compare(FEW, "SGD", torch.bfloat16, "step", CPU, samples=1)
    assert ("torch, fused" in result.absent) == (not p.any())


def test_whom_torch_refuses_does_not_take_part_and_the_others_do():
    def refused(kind, params):
        raise RuntimeError("`fused=True` requires another device")

    params = [torch.ones(3).requires_grad_()]
    params[0].grad = torch.ones(3)
    by_name = {peer.name: peer for peer in PEERS}
    fused, foreach = by_name["torch, fused"], by_name["torch, foreach"]
    steps = PROGRAMS["step"].steps("AdamW", params, [fused._replace(build=refused), foreach])
    found = {step[0]: step[1] for step in steps}
    assert found[fused.name] == "torch, fused: `fused=True` requires another device"
    assert found[foreach.name] is foreach
