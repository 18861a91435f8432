"""Where no kernel runs: torch's own step in its fastest form, and nothing beside it."""

import copy

import pytest
import torch

import spectramind_fused as ours
from spectramind_fused.optim import Lion
from spectramind_fused.stepping import backends
from tests.asserts import assert_equal, close
from tests.inputs import clones, for_kind, make_grads, make_params, set_grads
from tests.operators import Operators
from tests.oracle import CLASSES, VARIANTS, name_of
from tests.pairs import train

pytestmark = pytest.mark.cpu

SMALL = [(), (0,), (17,), (1025,)]
LARGE = [(200_000,), (3, 5)]


def classes_of(kind):
    return (ours.FusedLion, Lion) if kind == "Lion" else CLASSES[kind]


def fastest(kind, options, shapes):
    """As measured; Lion has one form."""
    if kind == "Lion":
        return {}
    small = shapes is SMALL
    stateless = kind == "SGD" and not options.get("momentum")
    if kind in ("Adam", "AdamW", "Adagrad", "SGD") and not (stateless and small):
        return {"fused": True}
    return {"foreach": small}


def operators_of(optimizer):
    with Operators() as operators:
        optimizer.step()
    return operators.seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_it_is_torchs_fastest_step_operator_by_operator(variant, shapes, dtype):
    kind, options = variant
    torch.manual_seed(0)
    params = make_params(for_kind(shapes, kind), dtype)
    torchs = clones(params)
    mine, theirs = classes_of(kind)
    optimizer = mine(params, backend="torch", **options)
    reference = theirs(torchs, **options, **fastest(kind, options, shapes))
    before = copy.deepcopy(optimizer.state_dict()["param_groups"])
    train([(optimizer, params), (reference, torchs)], 1, 3)
    assert_equal(params, torchs)
    assert operators_of(optimizer) == operators_of(reference)
    assert optimizer.state_dict()["param_groups"] == before
    for p, q in zip(params, torchs, strict=True):
        assert optimizer.state[p].keys() == reference.state[q].keys()
    assert optimizer.describe_plan() == ([], params)


@pytest.mark.parametrize(
    "asked",
    [{"foreach": False}, {"fused": False}, {"foreach": True}, {"foreach": False, "fused": False}],
    ids=str,
)
def test_a_form_that_is_asked_for_is_taken(asked):
    params = make_params(SMALL)
    torchs = clones(params)
    optimizer = ours.FusedAdamW(params, backend="torch", **asked)
    theirs = torch.optim.AdamW(torchs, **asked)
    train([(optimizer, params), (theirs, torchs)], 1, 2)
    assert operators_of(optimizer) == operators_of(theirs)
    assert_equal(params, torchs)


def test_a_tensor_lr_is_stepped_as_torch_does():
    params = make_params(SMALL)
    torchs = clones(params)
    optimizer = ours.FusedAdamW(params, lr=torch.tensor(0.01), backend="torch")
    theirs = torch.optim.AdamW(torchs, lr=torch.tensor(0.01))
    train([(optimizer, params), (theirs, torchs)], 1, 3)
    assert_equal(params, torchs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop"])
def test_16_bits_are_rounded_once_per_step(kind, dtype):
    """Torch's other forms round after every operation; its fused SGD moves nothing on CPUs."""
    options = {"momentum": 0.9} if kind != "AdamW" else {}
    params = make_params(for_kind(SMALL, kind), dtype)
    twins = clones(params)
    optimizer = CLASSES[kind][0](params, lr=0.01, backend="torch", **options)
    reference = CLASSES[kind][0](twins, lr=0.01, backend="eager", **options)
    before = clones(params)
    train([(optimizer, params), (reference, twins)], 1, 3)
    close(params, twins)
    assert not torch.equal(params[3], before[3])


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop", "Lion"])
def test_options_of_ours_come_and_go(kind):
    """With one on the step is the eager one; off again, torch's goes on from its state."""
    params = make_params(for_kind(SMALL, kind))
    twins = clones(params)
    options = {"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}
    optimizer = CLASSES[kind][0](params, lr=0.01, backend="torch", **options)
    reference = CLASSES[kind][0](twins, lr=0.01, backend="eager", **options)
    both = [(optimizer, params), (reference, twins)]

    def set_to(**changes):
        for each, _ in both:
            for key, value in changes.items():
                if key.startswith("spectramind"):
                    each.param_groups[0][key] = value
                else:
                    setattr(each, key, value)

    scaled = {"grad_scale": torch.tensor(2.0), "found_inf": torch.tensor(1.0)}
    for seed, (on, off) in enumerate(
        [
            (scaled, {"grad_scale": None, "found_inf": None}),
            ({"clip_grad_norm": 0.1}, {"clip_grad_norm": None}),
            ({"zero_grads": True}, {"zero_grads": False}),
            ({"spectramind_lookahead_k": 2}, {"spectramind_lookahead_k": 0}),
            ({"spectramind_ema_decay": 0.5}, {"spectramind_ema_decay": None}),
        ]
    ):
        set_to(**on)
        train(both, 2 * seed, 2)
        close(params, twins)
        set_to(**off)
        train(both, 2 * seed + 1, 2)
        close(params, twins)
        assert len(optimizer.describe_plan().eager) == len(params)
    assert optimizer.state[params[1]].keys() == reference.state[twins[1]].keys()


def test_a_dampened_buffer_that_a_kernel_made_and_a_scaler_skipped_begins_undampened():
    params = make_params(SMALL)
    torchs = clones(params)
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    optimizer = ours.FusedSGD(params, backend="cpu", **options)
    optimizer.found_inf = torch.tensor(1.0)
    train([(optimizer, params)], 1, 1)
    optimizer.found_inf, optimizer.backend = None, "torch"
    theirs = torch.optim.SGD(torchs, **options)
    train([(optimizer, params), (theirs, torchs)], 2, 3)
    close(params, torchs)


@pytest.mark.parametrize("kind", ["SGD", "Adagrad"])
def test_sparse_gradients_of_a_later_group_are_stepped(kind):
    params = [torch.randn(9, 3).requires_grad_() for _ in range(2)]
    torchs = clones(params)
    mine, theirs = classes_of(kind)
    momentum = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = mine([{"params": [p]} for p in params], lr=0.1, backend="torch", **momentum)
    reference = theirs([{"params": [p]} for p in torchs], lr=0.1, **momentum)
    train([(optimizer, params), (reference, torchs)], 1, 1)
    for _ in range(2):
        for p, t in zip(params, torchs, strict=True):
            set_grads([p, t], [torch.ones(9, 3)] * 2)
        sparse = torch.ones(9, 3).index_fill(0, torch.tensor([1, 4]), 0).to_sparse()
        params[1].grad, torchs[1].grad = sparse, sparse.clone()
        optimizer.step()
        reference.step()
        close(params, torchs)
    refused = ours.FusedAdamW([{"params": [p]} for p in params], lr=0.1, backend="torch")
    before = clones(params)
    with pytest.raises(RuntimeError, match="sparse"):
        refused.step()
    assert_equal(params, before)


CHANGES = {
    "a gradient lies otherwise": lambda p: setattr(p, "grad", p.grad.t().contiguous().t()),
    "a gradient is expanded": lambda p: setattr(p, "grad", torch.ones(1, 1).expand(40, 30)),
    "a gradient is negated": lambda p: setattr(p, "grad", torch._neg_view(p.grad)),
    "a parameter lies otherwise": lambda p: setattr(p, "data", p.data.t().contiguous().t()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop", "Adagrad"])
def test_torchs_fused_step_is_given_nothing_that_lies_otherwise(kind, change):
    """It reads memory as it lies: numbers would be wrong, or the process would end."""
    torch.manual_seed(0)
    params = [torch.randn(40, 30).requires_grad_() for _ in range(2)]
    torchs = clones(params)
    mine, theirs = classes_of(kind)
    momentum = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = mine(params, lr=0.1, backend="torch", **momentum)
    reference = theirs(torchs, lr=0.1, foreach=False, **momentum)
    train([(optimizer, params), (reference, torchs)], 1, 2)
    for step in range(3):
        grads = make_grads(params)
        for of_one in (params, torchs):
            set_grads(of_one, [g.clone() for g in grads])
            if step == 1:
                CHANGES[change](of_one[1])
        optimizer.step()
        reference.step()
        close(params, torchs)


def resized(p):
    p.data = torch.cat([p.data.flatten(), torch.ones(100_000)])


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_parameter_of_another_size_or_a_state_of_another_shape_is_refused(kind):
    momentum = {"momentum": 0.9} if kind == "SGD" else {}
    for change in (resized, lambda p: setattr(p, "data", torch.randn(50_000))):
        params = make_params(for_kind(SMALL, kind))
        optimizer = CLASSES[kind][0](params, lr=0.1, backend="torch", **momentum)
        train([(optimizer, params)], 1, 2)
        change(params[2])
        with pytest.raises((ValueError, RuntimeError), match="shape"):
            optimizer.step()
    params = make_params(for_kind(SMALL, kind))
    optimizer = CLASSES[kind][0](params, lr=0.1, backend="torch", **momentum)
    train([(optimizer, params)], 1, 2)
    name = "momentum_buffer" if kind == "SGD" else "exp_avg"
    optimizer.state[params[3]][name] = torch.zeros(3)
    with pytest.raises(ValueError, match=rf"{name!r} of shape \(3,\) does not fit"):
        optimizer.step()


def test_a_checkpoint_of_another_memory_format_goes_on():
    torch.manual_seed(0)
    params = [torch.randn(8, 4, 3, 3).requires_grad_()]
    theirs = torch.optim.AdamW(params)
    train([(theirs, params)], 1, 2)
    twins = [params[0].detach().clone(memory_format=torch.channels_last).requires_grad_()]
    optimizer = ours.FusedAdamW(twins, backend="torch")
    saved = copy.deepcopy(theirs.state_dict())
    optimizer.load_state_dict(saved)
    for state in optimizer.state.values():  # as torch.load and other loaders leave them
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].contiguous()
    for _ in range(3):
        grad = torch.randn(8, 4, 3, 3)
        params[0].grad, twins[0].grad = grad, grad.clone(memory_format=torch.channels_last)
        optimizer.step()
        theirs.step()
        close(twins, params)


def test_gradients_are_not_written():
    """Torch's foreach Nesterov writes into them; its fused step and its loop do not."""
    for dtype in (torch.float32, torch.complex64):
        for options in ({}, {"fused": False}, {"fused": True}):
            params = [torch.randn(9, dtype=dtype).requires_grad_() for _ in range(3)]
            nesterov = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
            optimizer = ours.FusedSGD(params, backend="torch", **nesterov, **options)
            for _ in range(3):
                grads = [torch.randn(9, dtype=dtype) for _ in params]
                set_grads(params, [g.clone() for g in grads])
                optimizer.step()
                assert_equal([p.grad for p in params], grads)


def test_where_kernels_serve_nothing_is_looked_at():
    params = make_params(SMALL)
    optimizer = ours.FusedAdamW(params)
    train([(optimizer, params)], 1, 2)
    assert optimizer._fallback._seen is None
    assert not optimizer.describe_plan().eager


def test_what_torch_does_not_take_is_stepped_or_refused_in_a_sentence():
    params = [torch._neg_view(torch.randn(9)).requires_grad_(), torch.randn(9).requires_grad_()]
    params[1].grad_dtype = None
    twins = [p.detach().resolve_neg().clone().requires_grad_() for p in params]
    optimizer = ours.FusedAdamW(params, backend="torch")
    theirs = torch.optim.AdamW(twins)
    grads = make_grads(params)
    set_grads(twins, grads)
    params[0].grad, params[1].grad = grads[0], grads[1].double()
    optimizer.step()
    theirs.step()
    close([p.resolve_neg() for p in params], twins)
    expanded = torch.ones(1).expand(3).detach().requires_grad_()
    expanded.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="holds several elements at one address"):
        ours.FusedAdamW([expanded], backend="torch").step()
    optimizer = ours.FusedAdamW(twins, backend="torch")
    optimizer.load_state_dict(theirs.state_dict())
    del optimizer.state[twins[0]]["exp_avg_sq"]
    with pytest.raises(ValueError, match="has 'step' and no 'exp_avg_sq'"):
        optimizer.step()


@pytest.mark.parametrize("step", [2, torch.tensor(2.0, dtype=torch.float64)], ids=str)
def test_a_step_counter_that_torchs_fused_step_does_not_take_goes_on(step):
    params = make_params(SMALL)
    theirs = torch.optim.AdamW(params)
    train([(theirs, params)], 1, 2)
    saved = copy.deepcopy(theirs.state_dict())
    for state in saved["state"].values():
        state["step"] = step
    twins = clones(params)
    twin = ours.FusedAdamW(twins, backend="torch")
    twin.load_state_dict(saved)
    train([(theirs, params), (twin, twins)], 2, 2)
    close(twins, params)
    assert twin.state[twins[0]]["step"].dtype == torch.float32


def test_auto_falls_back_to_it_and_says_so(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", {})
    params = make_params(SMALL)
    torchs = clones(params)
    optimizer = ours.FusedAdamW(params)
    theirs = torch.optim.AdamW(torchs, fused=True)
    train([(optimizer, params), (theirs, torchs)], 1, 3)
    assert_equal(params, torchs)
    assert optimizer.backends()["cpu"].startswith("torch")


@pytest.mark.parametrize("cls", [ours.FusedAdamW, torch.optim.AdamW])
def test_fused_parameters_on_a_device_that_torch_does_not_fuse_are_refused(cls):
    param = torch.zeros(3, device="meta", requires_grad=True)
    param.grad = torch.zeros(3, device="meta")
    optimizer = cls([param], fused=True)
    with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be floating"):
        optimizer.step()
    param.grad = None
    optimizer.step()  # it takes no part
