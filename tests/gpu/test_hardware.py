"""What only a real GPU shows: its memory, tensors of more than 2^31 elements, inductor."""

import gc
import time

import pytest
import torch

import spectramind_fused as ours
from spectramind_fused.bench.timing import recorded
from tests.asserts import assert_equal
from tests.backends import GPU_KERNELS
from tests.inputs import clones, give, make_grads, make_params

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("backend", GPU_KERNELS)]
TAIL = {"lookahead_k": 3, "ema_decay": 0.99, "clip_grad_norm": 1.0}


@pytest.mark.parametrize("options", [{}, TAIL], ids=["plain", "tail"])
def test_memory_does_not_grow_over_a_thousand_steps(backend, options):
    params = make_params([(1025,)] * 50)
    optimizer = ours.FusedAdamW(params, backend=backend, **options)
    seen = []
    for step in range(1010):
        give(make_grads(params), params)  # elsewhere at every step
        optimizer.step()
        if step % 500 == 9:
            gc.collect()
            torch.cuda.synchronize()
            seen.append(torch.cuda.memory_allocated())
    assert max(seen) - min(seen) < 1 << 20, seen


def needs(gigabytes):
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes << 30:
        pytest.skip(f"needs {gigabytes} GiB of free memory, and there are {free >> 30}")


@pytest.mark.parametrize("sizes", [[2**31 + 9000], [2**30 + 9000, 2**30 + 9000, 17]], ids=str)
def test_more_than_two_to_the_31_elements(backend, sizes):
    needs(12)
    params = [torch.ones(size, dtype=torch.bfloat16).requires_grad_() for size in sizes]
    for p in params:
        p.grad = torch.full_like(p, 2.0)
    optimizer = ours.FusedSGD(params, lr=0.25, backend=backend, clip_grad_norm=float("inf"))
    optimizer.step()
    for p in params:
        for part in p.detach().split(1 << 28):  # an element that was missed would show
            assert torch.all(part == 0.5)
    expected = 2.0 * sum(sizes) ** 0.5
    assert optimizer.grad_norm.item() == pytest.approx(expected, rel=1e-6)


def captured(step):
    """A graph of something that it may hold before a step that is refused."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.ones(3).mul_(2)  # torch warns of an empty graph
        step()
    return graph


def test_a_graph_that_is_gone_lets_go_of_its_tables(backend):
    """CUDA says so, by a user object of the graph."""
    params = make_params([(1025,)] * 3)
    optimizer = ours.FusedAdamW(params, backend=backend, clip_grad_norm=1.0)
    give(make_grads(params), params)
    for _ in range(3):
        optimizer.step()
    graph = captured(optimizer.step)
    ((watch, *_),) = optimizer._captures._kept
    assert watch.capture
    torch.cuda.synchronize()
    assert not watch.gone()
    graph.replay()
    del graph
    gc.collect()
    torch.cuda.synchronize()
    for _ in range(100):  # on a thread of CUDA's own
        if watch.gone():
            break
        time.sleep(0.05)
    assert watch.gone()
    optimizer.step()
    assert optimizer._captures.plans() == []


def test_what_would_have_to_be_built_is_refused_in_a_capture(backend):
    params = make_params([(1025,)] * 3)
    optimizer = ours.FusedAdamW(params, backend=backend)
    give(make_grads(params), params)

    def refused():
        with pytest.raises(RuntimeError, match="take one such step outside the graph"):
            optimizer.step()

    captured(refused)
    assert not optimizer.state
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5

    def changed():
        with pytest.raises(RuntimeError, match=r"refresh_hyperparameters\(\) before the capture"):
            optimizer.step()

    captured(changed)
    optimizer.refresh_hyperparameters()
    captured(optimizer.step).replay()
    torch.cuda.synchronize()
    assert {int(optimizer.state[p]["step"]) for p in params} == {2}


def test_a_training_step_that_inductor_compiles(backend):
    torch._dynamo.reset()
    runs = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 32)
        optimizer = ours.FusedAdamW(model.parameters(), lr=0.01, backend=backend, **TAIL)
        inputs = torch.randn(16, 64)

        def step(model=model, optimizer=optimizer, inputs=inputs):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

        run = torch.compile(step) if compiled else step
        for _ in range(4):
            run()
        runs.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*runs)  # inductor's own rounding is in it


def test_a_graph_of_muon_replays_its_products(backend):
    params = [torch.randn(shape).requires_grad_() for shape in [(64, 96)] * 3 + [(96, 64)]]
    twins = clones(params)
    options = {"lr": 0.02, "backend": backend, **TAIL}
    optimizer, twin = ours.FusedMuon(params, **options), ours.FusedMuon(twins, **options)
    give(make_grads(params), params)
    replay = recorded(optimizer.step)
    twin.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        for p, t in zip(params, twins, strict=True):
            t.copy_(p)
    for _ in range(4):
        grads = make_grads(params)
        for p, grad in zip(params, grads, strict=True):
            p.grad.copy_(grad)
        give(grads, twins)
        replay()
        twin.step()
    assert_equal(params, twins)
