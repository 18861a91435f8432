"""GradScaler, torch's and ours, in every order users call it in."""

import pytest
import torch

import spectramind_fused as ours
from tests import place
from tests.asserts import TORCHS_ULPS, Magnitudes, assert_equal, assert_within_ulps, close
from tests.backends import BACKENDS, KERNELS
from tests.inputs import clones, give, make_grads, make_params, set_grads
from tests.oracle import CLASSES
from tests.pairs import BesideReference, steps_taken

SHAPES = [(), (0,), (17,), (1025,)]
SCALERS = [torch.amp.GradScaler, ours.GradScaler]
KINDS = [
    ("Adam", {"lr": 1e-2, "amsgrad": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
]
BAD = (0, 3, 4)  # steps with an infinite gradient, the first among them


def scaled_run(optimizer, params, scaler, order, clip=1.0):
    """Seven steps, three of them with inf; yields after each."""
    for step in range(7):
        torch.manual_seed(step)
        scaler.scale(torch.ones(()))  # what a backward of the scaled loss would begin with
        grads = [g * scaler.get_scale() for g in make_grads(params)]
        if step in BAD:
            grads[2][3] = float("inf") if step else float("nan")
        give(grads, params)
        if order != "step":
            scaler.unscale_(optimizer)
        if order == "unscale, clip, step":
            torch.nn.utils.clip_grad_norm_(params, clip)
        scaler.step(optimizer)
        scaler.update()
        yield step, grads


def new_scaler(kind):
    return kind(place.device, init_scale=1024.0, growth_interval=2)


@pytest.mark.parametrize("order", ["step", "unscale, step", "unscale, clip, step"])
@pytest.mark.parametrize("scaler", SCALERS, ids=["torch's", "ours"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_every_order_is_as_with_torchs_optimizer(kind, options, backend, scaler, order):
    params = make_params(SHAPES)
    torchs = clones(params)
    optimizer = CLASSES[kind][0](params, backend=backend, **options)
    theirs = CLASSES[kind][1](torchs, foreach=False, **options)
    mine, torchs_scaler = new_scaler(scaler), new_scaler(torch.amp.GradScaler)
    runs = zip(
        scaled_run(optimizer, params, mine, order),
        scaled_run(theirs, torchs, torchs_scaler, order),
        strict=True,
    )
    sizes, skipped = Magnitudes(), []
    assert optimizer.skipped is None
    for _ in runs:
        assert mine.get_scale() == torchs_scaler.get_scale()
        sizes.see(torchs)
        skipped.append(optimizer.skipped)
    assert_within_ulps(params, torchs, sizes.largest, TORCHS_ULPS)
    assert [step for step, flag in enumerate(skipped) if flag] == [*BAD]
    assert steps_taken(optimizer, params) <= {4}
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.interpreted
@pytest.mark.parametrize("scaler", SCALERS, ids=["torch's", "ours"])
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_kernels_equal_the_reference_bit_for_bit(kind, options, clip, backend, scaler):
    """Unscale, clip, Lookahead and EMA together; a skipped step counts for none of them."""
    options |= {"clip_grad_norm": clip, "lookahead_k": 2, "ema_decay": 0.9}
    both = BesideReference(kind, make_params(SHAPES), backend, **options)
    scaler = new_scaler(scaler)
    scale = scaler.get_scale()
    for step, grads in scaled_run(both.optimizer, both.params, scaler, "step"):
        give(grads, both.expected)
        both.reference.step(scale, skip=step in BAD)
        scale = scaler.get_scale()
        both.check()
        assert_equal([p.grad for p in both.params], grads)
        if clip:
            assert both.optimizer.grad_norm.isfinite() == (step not in BAD)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_skipped_step_touches_nothing(kind, options, backend):
    options |= {"clip_grad_norm": 1.0, "lookahead_k": 1, "ema_decay": 0.5}
    params = make_params(SHAPES)
    optimizer = CLASSES[kind][0](params, backend=backend, **options)
    give(make_grads(params), params)
    optimizer.step()
    before = clones(params)
    states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in params]
    scaler = new_scaler(ours.GradScaler)
    scaler.scale(torch.ones(()))
    params[2].grad[0] = float("nan")
    scaler.step(optimizer)
    assert_equal(params, before)
    for p, state in zip(params, states, strict=True):
        assert list(optimizer.state[p]) == list(state)
        assert_equal(optimizer.state[p].values(), state.values())


@pytest.mark.parametrize("kind", ["RMSprop", "SGD"])
@pytest.mark.parametrize("backend", KERNELS)
def test_a_skipped_first_step_is_no_step_for_torch_either(kind, backend):
    """A kernel has made the momentum by then; RMSprop, unlike SGD, begins it with the rest."""
    options = {"lr": 0.1, "momentum": 0.9}
    params = make_params(SHAPES)
    torchs = clones(params)
    optimizer = CLASSES[kind][0](params, backend=backend, **options)
    theirs = CLASSES[kind][1](torchs, foreach=False, **options)
    scaler = new_scaler(ours.GradScaler)
    scaler.scale(torch.ones(()))
    give([g * float("inf") for g in make_grads(params)], params)
    scaler.step(optimizer)
    optimizer.param_groups[0]["foreach"] = True  # torch's own step from here on
    for _ in range(2):
        give(make_grads(params), params, torchs)
        optimizer.step()
        theirs.step()
    close(params, torchs)


@pytest.mark.parametrize("then_by_torch", [False, True])
@pytest.mark.parametrize("kind", ["ASGD", "Rprop"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_begins_as_the_lr_begins_at_the_first_step_that_is_taken(kind, backend, then_by_torch):
    """While a scaler finds its scale, a warm-up goes on; who skipped may not be who steps."""
    params = make_params(SHAPES)
    twins = clones(params)
    pairs = [(CLASSES[kind][0](params, lr=1e-4, backend=backend), params),
             (CLASSES[kind][1](twins, lr=1e-4), twins)]  # fmt: skip
    scalers = [torch.amp.GradScaler(place.device, init_scale=4.0) for _ in pairs]
    for step in range(4):
        torch.manual_seed(step)
        grads = make_grads(params)
        for (optimizer, of_it), scaler in zip(pairs, scalers, strict=True):
            scaler.scale(torch.ones(()))
            set_grads(of_it, [g * (torch.inf if step < 2 else scaler.get_scale()) for g in grads])
            scaler.step(optimizer)
            scaler.update()
            optimizer.param_groups[0]["lr"] *= 10
        if step == 1 and then_by_torch:
            pairs[0][0].param_groups[0]["foreach"] = True
    for p, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(p, twin, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["ASGD", "Rprop"])
@pytest.mark.parametrize("backend", KERNELS)
def test_it_does_where_torchs_own_step_is_taken_as_it_is(kind, backend):
    params = make_params(SHAPES)
    twins = clones(params)
    optimizer = CLASSES[kind][0](params, lr=1e-4, backend=backend)
    scaler = new_scaler(ours.GradScaler)
    scaler.scale(torch.ones(()))
    give([g * float("inf") for g in make_grads(params)], params)
    scaler.step(optimizer)
    optimizer.param_groups[0]["lr"], optimizer.backend = 0.1, "torch"
    theirs = CLASSES[kind][1](twins, lr=0.1)
    give(make_grads(params), params, twins)
    optimizer.step()
    theirs.step()
    close(params, twins)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_found_inf_of_two_devices_is_skipped_and_a_missing_scale_is_one(backend):
    params = make_params(SHAPES)
    twins = clones(params)
    optimizer = CLASSES["AdamW"][0](params, backend=backend)
    twin = CLASSES["AdamW"][0](twins, backend=backend)
    for found in (0.0, 2.0, 0.0):
        give(make_grads(params), params, twins)
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(found), None
        optimizer.step()
        del optimizer.found_inf, optimizer.grad_scale
        if not found:
            twin.step()
    assert_equal(params, twins)


@pytest.mark.parametrize("backend", BACKENDS)
def test_finite_gradients_of_any_size_are_not_taken_for_inf(backend):
    params = make_params([(40,)], torch.bfloat16)
    optimizer = CLASSES["SGD"][0](params, lr=1e-30, backend=backend)
    scaler = new_scaler(ours.GradScaler)
    scaler.scale(torch.ones(()))
    give([g * 1e30 for g in make_grads(params)], params)
    before = clones(params)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1024.0
    assert steps_taken(optimizer, params) <= {1}
    assert not torch.equal(params[0], before[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_our_scaler_makes_no_pass_of_its_own(backend, monkeypatch):
    def no_pass(*_):
        raise AssertionError("torch's pass over the gradients")

    monkeypatch.setattr(torch, "_amp_foreach_non_finite_check_and_unscale_", no_pass)
    params = make_params(SHAPES)
    optimizer = CLASSES["AdamW"][0](params, backend=backend)
    scaler = new_scaler(ours.GradScaler)
    for step, grads in scaled_run(optimizer, params, scaler, "step"):
        assert_equal([p.grad for p in params], grads)
        assert int(optimizer.state[params[0]].get("step", 0)) == (0, 1, 2, 2, 2, 3, 4)[step]
    # halved by three bad steps, doubled after each two good ones in a row
    assert scaler.get_scale() == 1024.0 / 2 * 2 / 2 / 2 * 2


def test_our_scaler_serves_other_optimizers_as_torchs_does():
    params = make_params(SHAPES)
    twins = clones(params)
    runs = []
    for mine, kind in ((params, ours.GradScaler), (twins, torch.amp.GradScaler)):
        optimizer = torch.optim.AdamW(mine, lr=0.1, fused=True)
        scaler = new_scaler(kind)
        for _ in scaled_run(optimizer, mine, scaler, "step"):
            pass
        runs.append(scaler.state_dict())
    assert_equal(params, twins)
    assert runs[0] == runs[1]


def test_a_scaler_that_is_off_changes_nothing():
    params = make_params(SHAPES)
    twins = clones(params)
    optimizer, twin = CLASSES["AdamW"][0](params), CLASSES["AdamW"][0](twins)
    scaler = ours.GradScaler(place.device, enabled=False)
    give(make_grads(params), params, twins)
    scaler.step(optimizer)
    scaler.update()
    twin.step()
    assert_equal(params, twins)


def test_a_differentiable_step_is_unscaled_by_the_scaler():
    params = [torch.ones(3, requires_grad=True).clone()]
    optimizer = CLASSES["SGD"][0](params, lr=0.1, differentiable=True)
    scaler = new_scaler(torch.amp.GradScaler)
    scaler.scale(torch.ones(()))
    params[0].grad = torch.full((3,), 1024.0)
    scaler.step(optimizer)
    torch.testing.assert_close(params[0], torch.full((3,), 0.9))
