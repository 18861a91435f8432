"""Launches are few, and decide everything on the device: a captured CUDA graph stays right.

A graph is played by hand: the launches of one step are recorded and run again, with other numbers
in the same tensors. tests/gpu captures real ones; test_captures.py is about their memory.
"""

from contextlib import contextmanager

import pytest
import torch

from spectramind_fused.kernels import BACKENDS
from tests.asserts import TORCHS_ULPS, Magnitudes, assert_equal, assert_within_ulps
from tests.backends import KERNELS
from tests.inputs import clones, give, make_grads, make_params
from tests.operators import Operators
from tests.oracle import CLASSES, Reference

SHAPES = [(), (0,), (17,), (1025,)]
WHOLE = {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 1.0}

LAUNCHES = ("norm", "advance", "update", "squares", "factor", "measure")


@contextmanager
def recorded(monkeypatch, name):
    """The launches of a backend, as functions that run them again."""
    launches, backend = [], BACKENDS[name]
    with monkeypatch.context() as patch:
        for kernel in LAUNCHES:
            original = getattr(backend, kernel)

            def launch(*args, kernel=kernel, original=original):
                launches.append((kernel, lambda: original(*args)))
                original(*args)

            patch.setattr(backend, kernel, launch)
        yield launches


def names(launches):
    return [name for name, _ in launches]


def overwrite(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad.copy_(g)


@pytest.mark.parametrize("groups", [1, 50])
@pytest.mark.parametrize("tensors", [1, 200, 2000])
@pytest.mark.parametrize("backend", KERNELS)
def test_launches_do_not_depend_on_how_many_tensors_or_groups(
    monkeypatch, backend, tensors, groups
):
    if backend != "cpu" and tensors == 2000:
        for kernel in ("norm", "update"):  # interpreting 2,000 programs takes a minute
            monkeypatch.setattr(BACKENDS[backend], kernel, lambda *_: None)
    params = [torch.ones(3).requires_grad_() for _ in range(tensors)]
    parts = [{"params": params[i::groups]} for i in range(groups) if params[i::groups]]
    optimizer = CLASSES["AdamW"][0](parts, lookahead_k=2, ema_decay=0.9, backend=backend)
    give([torch.ones(3)] * tensors, params)
    optimizer.step()
    with recorded(monkeypatch, backend) as launches:
        optimizer.step()
        assert names(launches) == ["advance", "update"]
        optimizer.clip_grad_norm = 1.0
        optimizer.step()
        assert names(launches)[2:] == ["norm", "advance", "update"]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adafactor"])
def test_a_steady_step_is_nothing_but_its_launches(monkeypatch, backend, kind):
    """No operation of torch: nothing allocated, nothing copied, no number read back."""
    params = make_params(SHAPES)
    lr = torch.tensor(0.1)
    options = {"betas": (torch.tensor(0.9), torch.tensor(0.99))} if kind == "AdamW" else {}
    optimizer = CLASSES[kind][0](
        params, lr=lr, zero_grads=True, backend=backend, **WHOLE, **options
    )
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    give(make_grads(params), params)
    optimizer.step()
    for kernel in LAUNCHES:  # the interpreter's own use of torch
        monkeypatch.setattr(BACKENDS[backend], kernel, lambda *_: None)
    with Operators() as operators:
        optimizer.step()
        lr.mul_(0.5)  # noticed: the check itself works
        optimizer.step()
    assert operators.seen == ["aten.mul_.Tensor"]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adafactor"])
def test_replayed_launches_are_right_on_every_later_step(monkeypatch, backend, kind):
    """Sync steps, a new lr in its tensor or by refresh, skipped steps, clipped ones."""
    params = make_params(SHAPES)
    expected = clones(params)
    options = WHOLE | ({"momentum": 0.9, "dampening": 0.5} if kind == "SGD" else {})
    lr, scale, found_inf = torch.tensor(0.1), torch.tensor(4.0), torch.tensor(0.0)
    optimizer = CLASSES[kind][0](params, lr=lr, backend=backend, **options)
    reference = Reference(kind, expected, lr=0.1, **options)
    reference.options["lr"] = lr.item()
    optimizer.grad_scale, optimizer.found_inf = scale, found_inf

    give(make_grads(params), params, expected)
    with recorded(monkeypatch, backend) as launches:
        optimizer.step()
    reference.step(scale.item())
    for step in range(9):
        grads = make_grads(params)
        overwrite(params, grads)
        give(grads, expected)
        found_inf.fill_(2.0 if step in (1, 4) else 0.0)
        if step == 3:
            lr.fill_(0.05)
        if step == 5:
            scale.fill_(1024.0)
        if step == 6:
            optimizer.param_groups[0]["weight_decay"] = 0.2
            optimizer.clip_grad_norm = 0.5
            optimizer.refresh_hyperparameters()
            reference.options["weight_decay"], reference.max_norm = 0.2, 0.5
        for _, launch in launches:
            launch()
        reference.options["lr"] = lr.item()
        reference.step(scale.item(), skip=bool(found_inf))
        assert_equal(params, expected)
        states = [optimizer.state[p] for p in params]
        assert_equal([s["slow_weights"] for s in states], reference.slow)
        assert_equal([s["ema_weights"] for s in states], reference.average)
    assert {int(s["step"]) for s in states} == {8} == {reference.steps}


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hyperparameters_in_tensors_are_those_of_torch(backend, dtype):
    def options():  # betas that float32 holds: torch rounds float64 ones to it
        return {
            "lr": torch.tensor(0.05, dtype=dtype),
            "betas": (torch.tensor(0.75, dtype=dtype), torch.tensor(0.9375, dtype=dtype)),
        }

    params = make_params(SHAPES)
    torchs = clones(params)
    mine, theirs = options(), options()
    optimizer = CLASSES["AdamW"][0](params, backend=backend, **mine)
    other = CLASSES["AdamW"][1](torchs, foreach=False, **theirs)
    sizes = Magnitudes()
    for step in range(6):
        give(make_grads(params), params, torchs)
        optimizer.step()
        other.step()
        sizes.see(torchs)
        for values in (mine, theirs):
            values["lr"].mul_(0.5)
            if step == 2:
                values["betas"][0].fill_(0.5)
    assert_within_ulps(params, torchs, sizes.largest, TORCHS_ULPS)


def test_a_tensor_of_another_dtype_is_read_on_the_host():
    params = make_params(SHAPES)
    twins = clones(params)
    lr = torch.tensor(0.5, dtype=torch.float16)
    optimizer = CLASSES["SGD"][0](params, lr=lr)
    twin = CLASSES["SGD"][0](twins, lr=0.5)
    give(make_grads(params), params, twins)
    optimizer.step()
    twin.step()
    assert_equal(params, twins)
