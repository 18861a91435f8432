"""In what `torch.compile` compiles a step is one clean graph break; its numbers are the same."""

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import spectramind_fused as ours
from tests import place
from tests.asserts import assert_equal
from tests.backends import BACKENDS
from tests.oracle import CLASSES

TAIL = {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 0.1}
SCALERS = [None, torch.amp.GradScaler, ours.GradScaler]


@pytest.fixture
def compiled():
    """Compiles a function; counts the graphs and lets no warning pass."""
    torch._dynamo.reset()
    counter = CompileCounter()

    def compiled(function):
        return torch.compile(function, backend=counter)

    compiled.counter = counter
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        # What torch's own optimizers give rise to as well.
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not")
        yield compiled
    torch._dynamo.reset()


def training(make, scaler=None):
    """A model, its optimizer and a step of them, the backward pass included."""
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 5)
    optimizer = make(model.parameters())
    inputs = torch.randn(4, 7)
    scaler = None if scaler is None else scaler(place.device, init_scale=4.0)

    def step():
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss

    return model, optimizer, step


@pytest.mark.parametrize("scaler", SCALERS, ids=["none", "torch's", "ours"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_training_step(backend, scaler, compiled):
    def make(params):
        return CLASSES["AdamW"][0](params, lr=0.01, backend=backend, **TAIL)

    plain, _, step = training(make, scaler)
    twin, _, twin_step = training(make, scaler)
    twin_step = compiled(twin_step)
    for _ in range(4):
        assert_equal([twin_step()], [step()])
    assert_equal(twin.parameters(), plain.parameters())
    assert compiled.counter.frame_count == 1  # the forward pass


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_step_of_an_optimizer(backend, compiled):
    def make(params):
        return CLASSES["AdamW"][0](params, backend=backend, **TAIL)

    (plain, optimizer, _), (twin, twins, _) = training(make), training(make)
    step = compiled(twins.step)
    for _ in range(4):
        for p, t in zip(plain.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            t.grad = p.grad.clone()
        optimizer.step()
        step()
    assert_equal(twin.parameters(), plain.parameters())
    assert compiled.counter.frame_count == 0


def test_an_optimizer_that_is_made_inside(compiled):
    model = torch.nn.Linear(7, 5)

    def made():
        return ours.FusedAdamW(model.parameters(), lr=0.5, lookahead_k=3)

    optimizer = compiled(made)()
    assert type(optimizer) is ours.FusedAdamW
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("around", [False, True], ids=["by itself", "with the step"])
def test_a_closure_that_is_compiled(around, compiled):
    model, optimizer, _ = training(lambda params: ours.FusedSGD(params, lr=0.1))

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 7)).square().mean()
        loss.backward()
        return loss

    step = compiled(optimizer.step) if around else optimizer.step
    losses = [float(step(closure if around else compiled(closure)).detach()) for _ in range(3)]
    assert losses[2] < losses[0]
    assert compiled.counter.frame_count == 1
