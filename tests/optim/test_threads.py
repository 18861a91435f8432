"""Several threads, forks in the midst of data loading, and the end of a process that steps."""

import os
import subprocess
import sys
import sysconfig
import threading

import pytest
import torch

import spectramind_fused as ours
from spectramind_fused.kernels import host
from spectramind_fused.stepping import ending
from tests.asserts import assert_equal

pytestmark = pytest.mark.cpu


# Different plans, participants and random bits in each.
OPTIONS = [
    {"clip_grad_norm": 1.0, "lookahead_k": 2},
    {"state_dtype": "int8", "low_precision_min_size": 0, "seed": 3},
    {"ema_decay": 0.9, "zero_grads": True},
    {"stochastic_rounding": True, "master_weights": "split", "seed": 7},
]


class Run:
    """An optimizer, and gradients of its own."""

    def __init__(self, backend, number):
        self.generator = torch.Generator().manual_seed(number)
        options = OPTIONS[number % len(OPTIONS)]
        dtype = torch.bfloat16 if "master_weights" in options else torch.float32
        self.params = [self.drawn(size).to(dtype).requires_grad_() for size in (3, 70, 40_000)]
        self.optimizer = ours.FusedAdamW(self.params, backend=backend, **options)

    def drawn(self, size):
        return torch.randn(size, generator=self.generator)

    def steps(self, count=30):
        for step in range(count):
            for i, p in enumerate(self.params):
                p.grad = None if step % 5 == i else self.drawn(p.shape).to(p.dtype)
            self.optimizer.step()

    def held(self):
        states = [v for s in self.optimizer.state.values() for v in s.values()]
        return [*self.params, *states]


@pytest.mark.parametrize("backend", ["cpu", "eager", "torch"])
def test_optimizers_in_threads_of_their_own_step_as_one_after_the_other(backend):
    in_turn, at_once = ([Run(backend, i) for i in range(4)] for _ in range(2))
    for run in in_turn:
        run.steps()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # another thread's turn after every few instructions
    try:
        threads = [threading.Thread(target=run.steps) for run in at_once]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for run, other in zip(at_once, in_turn, strict=True):
        assert_equal(run.held(), other.held())


class Stepped(torch.utils.data.Dataset):
    """Each item is what a step in the worker has made of the parameters there."""

    def __init__(self, optimizer, params):
        self.optimizer, self.params = optimizer, params

    def __len__(self):
        return 2

    def __getitem__(self, _):
        for p in self.params:
            p.grad = torch.ones_like(p)
        self.optimizer.step()
        return self.params[0].detach().clone()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_worker_of_a_data_loader_steps(how):
    """A copy where it is forked; one that is begun anew shares the memory that it is sent."""
    params = [torch.ones(n).requires_grad_() for n in (5, 200_000)]
    optimizer = ours.FusedAdamW(params, lr=0.1, lookahead_k=2)
    data = Stepped(optimizer, params)
    data[0]
    before = params[0].detach().clone()
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=1, multiprocessing_context=how, timeout=60
    )
    of_worker = list(loader)
    if how == "fork":
        assert_equal(params[:1], [before])
        assert_equal([data[i] for i in range(2)], of_worker)
    else:
        assert_equal(params[:1], of_worker[-1:])


ENDING = """
import atexit, sys, threading
import torch
import spectramind_fused as ours

params = [torch.ones(n, requires_grad=True) for n in (7, 200_000)]
optimizer = ours.FusedAdamW(params, backend=sys.argv[1], clip_grad_norm=1.0, ema_decay=0.9)
for p in params:
    p.grad = torch.ones_like(p)
begun = threading.Event()

def steps():
    while True:
        optimizer.step()
        begun.set()

def at_the_end():
    other = ours.FusedSGD(params, lr=0.1)
    other.step()
    print("stepped at the end")

atexit.register(at_the_end)
threading.Thread(target=steps, daemon=True).start()
begun.wait()
"""


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_process_may_end_while_a_daemon_thread_steps(backend):
    """Torch's own step aborts it there: `terminate called without an active exception`."""
    run = subprocess.run(
        [sys.executable, "-c", ENDING, backend],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "stepped at the end\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_was_forked_in_mid_step_is_told_so_and_ends_at_once():
    """The step it was forked in will never end there, and has left who knows what half done."""
    params = [torch.ones(5).requires_grad_()]
    optimizer = ours.FusedAdamW(params)
    params[0].grad = torch.ones(5)
    with optimizer._in_step:
        child = os.fork()
        if child == 0:
            try:
                optimizer.step()
            except RuntimeError as error:
                ending._end()  # as at exit: it must not wait for the parent's step
                os._exit(3 if "another thread" in str(error) else 4)
            os._exit(5)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3


def test_without_the_interpreters_lock_nothing_is_read_behind_pythons_back(monkeypatch):
    """A free-threaded Python: another thread may change a list while C goes through it."""
    with_lock = Run("cpu", 0)
    with_lock.steps(6)
    variable = sysconfig.get_config_var
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda name: name == "Py_GIL_DISABLED" or variable(name)
    )
    host._access.cache_clear()
    monkeypatch.setattr(host.Facts, "__init__", lambda *_: pytest.fail("C reads Python's lists"))
    without = Run("cpu", 0)
    without.steps(6)
    host._access.cache_clear()
    assert without.optimizer.describe_plan().buckets[0].backend == "cpu"
    assert_equal(without.held(), with_lock.held())
