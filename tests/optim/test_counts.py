"""What a step costs, in counts that no busy machine changes: launches, operators, allocations."""

import gc
import sys
import tracemalloc

import pytest
import torch

from spectramind_fused import FusedAdamW, FusedLion, FusedSGD, GradScaler
from spectramind_fused.kernels import BACKENDS
from tests.operators import Operators

pytestmark = pytest.mark.cpu

TAIL = {"lookahead_k": 3, "ema_decay": 0.99, "clip_grad_norm": 1.0}


def parameters(count):
    params = [torch.randn(7 + i % 5).requires_grad_() for i in range(count)]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


@pytest.fixture
def launches(monkeypatch):
    """The names of the launches of the cpu backend, as they happen."""
    seen = []
    for name in ("norm", "advance", "update"):
        original = getattr(BACKENDS["cpu"], name)

        def launch(*args, name=name, original=original):
            seen.append(name)
            return original(*args)

        monkeypatch.setattr(BACKENDS["cpu"], name, launch)
    return seen


@pytest.mark.parametrize("groups", [1, 30])
@pytest.mark.parametrize("count", [1, 30, 600])
@pytest.mark.parametrize(("options", "expected"), [({}, 2), (TAIL, 3)])
def test_launches_do_not_grow_with_tensors_or_groups(launches, count, groups, options, expected):
    params = parameters(count)
    each = [{"params": params[i::groups], "lr": 1e-3 * (i + 1)} for i in range(min(groups, count))]
    optimizer = FusedAdamW(each, **options)
    optimizer.step()
    launches.clear()
    optimizer.step()
    assert launches == ["norm", "advance", "update"][-expected:]


@pytest.mark.parametrize("make", [FusedAdamW, FusedLion, lambda p, **o: FusedSGD(p, lr=0.1, **o)])
@pytest.mark.parametrize("options", [{}, TAIL])
def test_a_settled_step_runs_no_operator_of_torchs(make, options):
    """So it makes no tensor and copies none, on whatever step of Lookahead's cycle."""
    params = parameters(50)
    optimizer = make(params, **options)
    optimizer.step()
    with Operators() as operators:
        for _ in range(6):
            optimizer.step()
    assert operators.seen == []


WHOLE = {**TAIL, "zero_grads": True}


def calls(step):
    """How many functions a step calls, in Python and from Python in C."""
    seen = []
    sys.setprofile(lambda frame, event, argument: seen.append(event))
    try:
        step()
    finally:
        sys.setprofile(None)
    return seen.count("call"), seen.count("c_call")


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("options", [{}, TAIL, WHOLE])
def test_python_does_as_much_for_a_thousand_tensors_as_for_ten(options, moved):
    """Nothing is called, listed or allocated for each of them, also where all gradients moved."""
    taken, peaks = [], []
    for count in (10, 1000):
        params = parameters(count)
        optimizer = FusedAdamW(params, **options)
        for measured, measure in ((None, peak_bytes), (taken, calls), (peaks, peak_bytes)):
            for p in params if moved else ():
                p.grad = p.grad.clone()
            seen = measure(optimizer.step)
            if measured is not None:
                measured.append(seen)
    assert taken[0] == taken[1]
    few, many = peaks
    assert many - few < 2000 + 8 * 1000  # conftest.py's list of who serves


def test_options_are_read_again_only_when_one_has_changed():
    params = parameters(40)
    optimizer = FusedAdamW([{"params": [p]} for p in params])
    optimizer.step()
    optimizer.step()
    settled = calls(optimizer.step)
    optimizer.param_groups[7]["lr"] = 0.5
    changed = calls(optimizer.step)
    assert sum(settled) < 0.25 * sum(changed)
    assert calls(optimizer.step) == settled


@pytest.mark.parametrize("count", [5, 50])
def test_gradients_that_moved_cost_no_operator(count):
    params = parameters(count)
    optimizer = FusedAdamW(params)
    optimizer.step()
    for p in params:
        p.grad = p.grad.clone()
    with Operators() as operators:
        optimizer.step()
    assert operators.seen == []


def peak_bytes(step):
    """What Python has allocated at most during a step, beyond what it had before."""
    gc.collect()
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("options", [{}, TAIL])
def test_steps_keep_no_memory(options):
    optimizer = FusedAdamW(parameters(200), **options)
    for _ in range(3):
        optimizer.step()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(50):
        optimizer.step()
    gc.collect()
    assert abs(sys.getallocatedblocks() - before) < 50  # less than one for each step


@pytest.mark.parametrize("options", [{}, TAIL])
def test_a_step_holds_less_than_a_kilobyte_per_tensor(options):
    """Lists of gradients and addresses, while it runs: what Python allocates at its height."""
    count = 500
    optimizer = FusedAdamW(parameters(count), **options)
    for _ in range(3):
        optimizer.step()
    gc.collect()
    tracemalloc.start()
    try:
        optimizer.step()
        _, height = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert height < 1000 * count


def test_our_scaler_runs_as_many_operators_for_any_number_of_tensors():
    seen = []
    for count in (10, 100):
        optimizer = FusedAdamW(parameters(count), **TAIL)
        scaler = GradScaler("cpu", init_scale=2.0)
        scaler.scale(torch.ones(()))
        for _ in range(2):
            with Operators() as operators:
                scaler.step(optimizer)
                scaler.update()
        seen.append(operators.seen)
    assert seen[0] == seen[1]
