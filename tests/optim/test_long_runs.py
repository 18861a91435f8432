"""A long run takes no more memory, and no more time for a step, at its end than before."""

import gc
import os
import random
import time
import tracemalloc

import pytest
import torch

import spectramind_fused as ours
from tests import draws

pytestmark = [pytest.mark.cpu, pytest.mark.random]
SIZES = (1, 33, 500, 4096)
AT_ONCE = 50  # steps that are timed together


def resident():
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Run:
    """Everything that a step has, with other participants at every step.

    Attributes:
        quickest: the least processor time that a step took, of some taken together.
    """

    def __init__(self, backend):
        self.rng = random.Random(0)
        self.params = [torch.randn(size).requires_grad_() for size in SIZES for _ in range(2)]
        self.grads = [torch.randn_like(p) for p in self.params]
        self.optimizer = ours.FusedAdamW(
            self.params, backend=backend, lookahead_k=5, ema_decay=0.99, clip_grad_norm=1.0
        )
        self.scaler = ours.GradScaler("cpu", init_scale=8.0, growth_interval=100)
        self.scaler.scale(torch.ones(()))
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1000)

    def step(self):
        for p, grad in zip(self.params, self.grads, strict=True):
            p.grad = grad if self.rng.random() < 0.7 else None
        if self.rng.random() < 0.02:
            self.params[-1].grad = self.grads[-1] * torch.inf
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()

    def steps(self, count):
        times = []
        for _ in range(count // AT_ONCE):
            begin = time.thread_time()
            for _ in range(AT_ONCE):
                self.step()
            times.append((time.thread_time() - begin) / AT_ONCE)
        self.quickest = min(times)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_long_run_grows_in_nothing(backend, record_property):
    fifth = (20_000 if draws.rounds else 1_000) // (1 if backend == "cpu" else 4)
    run = Run(backend)
    run.steps(fifth)
    first, before = run.quickest, resident()
    run.steps(fifth)
    gc.collect()
    tracemalloc.start()
    run.steps(fifth // 5)  # of what this makes, a little is still there: this step's own
    held = tracemalloc.get_traced_memory()[0]
    run.steps(fifth - fifth // 5)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - held
    tracemalloc.stop()
    run.steps(2 * fifth)
    resident_grown, slower = resident() - before, run.quickest / first
    record_property(
        "summary",
        f"{5 * fifth} steps ({backend}): {grown} bytes more in Python, {resident_grown >> 10} KiB "
        f"in memory, {first * 1e6:.0f} microseconds a step, at the end {slower:.2f} times that",
    )
    assert grown < 20_000
    assert resident_grown < 4 << 20
    assert slower < 1.5
    taken = max(int(run.optimizer.state[p]["step"]) for p in run.params)
    assert 0.6 * 5 * fifth < taken < 0.8 * 5 * fifth
