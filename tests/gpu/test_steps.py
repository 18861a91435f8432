"""A step on a GPU: nothing waits, launches are few, streams and graphs come to the same."""

import pytest
import torch

from spectramind_fused import FusedMuon
from tests.asserts import assert_equal
from tests.backends import GPU_KERNELS
from tests.inputs import clones, give, make_grads, make_params, set_grads
from tests.oracle import CLASSES
from tests.pairs import BesideReference

SHAPES = [(), (17,), (1025,), (9000,)]
TAIL = {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 1.0}
on_each_backend = pytest.mark.parametrize("backend", GPU_KERNELS)
with_and_without = pytest.mark.parametrize("tail", [{}, TAIL], ids=["plain", "tail"])


def settled(backend, tail, kind="AdamW"):
    """An optimizer after a step, with its gradients still there."""
    params = make_params(SHAPES)
    optimizer = CLASSES[kind][0](params, lr=0.1, backend=backend, **tail)
    give(make_grads(params), params)
    optimizer.step()
    return optimizer, params


@on_each_backend
@with_and_without
def test_a_steady_step_waits_for_nothing(card, backend, tail):
    optimizer, params = settled(backend, tail)
    other = make_grads(params)
    with card.no_waits():
        for _ in range(3):
            optimizer.step()
        for p, grad in zip(params, other, strict=True):
            p.grad = grad  # elsewhere
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.step()
    assert all(p.isfinite().all() for p in params)


@on_each_backend
@with_and_without
def test_launches_of_a_step(card, backend, tail):
    optimizer, _ = settled(backend, tail)
    names = card.launched(optimizer.step)
    expected = ["norm", "advance", "update"] if tail else ["advance", "update"]
    assert len(names) == len(expected), names
    assert all(e in name for e, name in zip(expected, names, strict=True)), names


@on_each_backend
@with_and_without
def test_a_side_stream_comes_to_the_same(card, backend, tail):
    torch.manual_seed(0)
    both = BesideReference("AdamW", make_params(SHAPES), backend, **tail)
    both.step()
    for _ in range(4):
        grads = both.give()
        with card.side_stream():
            set_grads(both.params, grads)
            both.optimizer.step()
        both.reference.step()
    both.check()


@on_each_backend
def test_matrices_take_one_more_pair_of_launches_however_many_they_are(card, backend):
    """Between the pairs are torch's products; nothing waits for them."""
    params = [torch.randn(shape).requires_grad_() for shape in [(24, 40)] * 9 + [(40, 24)] * 7]
    optimizer = FusedMuon(params, lr=0.02, backend=backend, **TAIL)
    give(make_grads(params), params)
    optimizer.step()
    names = card.launched(optimizer.step)
    ours = [name for name in ("advance", "update") for seen in names if name in seen]
    assert ours == ["advance", "advance", "update", "update"]
    with card.no_waits():
        optimizer.step()


def overwrite(params, grads):
    for p, grad in zip(params, grads, strict=True):
        p.grad.copy_(grad)


def twin_of(optimizer, params, **options):
    """The same class at the same point, with gradients of its own."""
    twins = clones(params)
    twin = type(optimizer)(twins, **options)
    twin.load_state_dict(optimizer.state_dict())
    set_grads(twins, [p.grad for p in params])
    return twin, twins


@on_each_backend
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_replays_are_the_steps_that_would_have_been_taken(card, kind, backend):
    """Over syncs, another lr in its tensor, another decay by refresh, and skipped steps."""
    lr, found_inf, scale = torch.tensor(0.1), torch.tensor(0.0), torch.tensor(4.0)
    options = {"lr": lr, "backend": backend, **TAIL}
    options |= {"momentum": 0.9} if kind == "SGD" else {}
    params = make_params(SHAPES)
    optimizer = CLASSES[kind][0](params, **options)
    optimizer.grad_scale, optimizer.found_inf = scale, found_inf
    give(make_grads(params), params)
    replay = card.capture(optimizer.step)
    twin, twins = twin_of(optimizer, params, **options)
    twin.grad_scale, twin.found_inf = scale, found_inf
    for group in twin.param_groups:
        group["lr"] = lr  # the same tensor; a load has copied it
    for step in range(8):
        grads = make_grads(params)
        overwrite(params, grads)
        overwrite(twins, grads)
        found_inf.fill_(step in (1, 4))
        if step == 3:
            lr.fill_(0.05)
        if step == 6:
            for each in (optimizer, twin):
                each.param_groups[0]["weight_decay"] = 0.2
            optimizer.refresh_hyperparameters()
        replay()
        twin.step()
        assert_equal(params, twins)
    for p, t in zip(params, twins, strict=True):
        assert_equal(optimizer.state[p].values(), twin.state[t].values())


@on_each_backend
def test_two_graphs_replay_in_turn(card, backend):
    graphs = []
    for kind in ("AdamW", "RMSprop"):
        optimizer, params = settled(backend, {}, kind)
        replay = card.capture(optimizer.step)
        twin, twins = twin_of(optimizer, params, lr=0.1, backend=backend)
        graphs.append((replay, optimizer, params, twin, twins))  # a graph needs its optimizer
    for _ in range(3):
        for replay, _, params, twin, twins in graphs:
            grads = make_grads(params)
            overwrite(params, grads)
            overwrite(twins, grads)
            replay()
            twin.step()
    for _, _, params, _, twins in graphs:
        assert_equal(params, twins)


def another_plan(optimizer, params):
    optimizer.norm_group = None


def other_participants(optimizer, params):
    params[1].grad = None


@on_each_backend
@pytest.mark.parametrize("change", [another_plan, other_participants])
def test_a_graph_is_right_after_other_steps(card, backend, change):
    """It reads the tables that it was captured on, and its own gradients."""
    optimizer, params = settled(backend, {})
    replay = card.capture(optimizer.step)
    held = [p.grad for p in params]
    change(optimizer, params)
    optimizer.step()
    for p, grad in zip(params, held, strict=True):
        p.grad = grad
    filler = [torch.full((4096,), float("nan")) for _ in range(64)]  # into what may have been freed
    twin, twins = twin_of(optimizer, params, lr=0.1, backend=backend)
    for _ in range(3):
        grads = make_grads(params)
        overwrite(params, grads)
        overwrite(twins, grads)
        replay()
        twin.step()
    assert_equal(params, twins)
    assert all(f.isnan().all() for f in filler)


@on_each_backend
def test_two_steps_in_one_graph(card, backend):
    """With gradients in two places: Triton's tables are pointed at each in turn."""
    optimizer, params = settled(backend, TAIL)
    places = [[p.grad for p in params], make_grads(params)]

    def both():
        for place in places:
            for p, grad in zip(params, place, strict=True):
                p.grad = grad
            optimizer.step()

    replay = card.capture(both)
    twin, twins = twin_of(optimizer, params, lr=0.1, backend=backend, **TAIL)
    for _ in range(3):
        for place in places:
            grads = make_grads(params)
            for held, grad in zip(place, grads, strict=True):
                held.copy_(grad)
        replay()
        for place in places:
            set_grads(twins, place)
            twin.step()
    assert_equal(params, twins)
