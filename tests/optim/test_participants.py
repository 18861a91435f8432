"""Parameters that come and go: a gradient that is None at one step and there at the next."""

import copy
import gc
import weakref

import pytest
import torch

from spectramind_fused.multi_tensor import runtime
from spectramind_fused.stepping import plan as planning
from tests import place
from tests.asserts import assert_equal
from tests.backends import GPU_KERNELS, KERNELS
from tests.inputs import clones, make_grads, make_params
from tests.operators import Operators
from tests.oracle import CLASSES
from tests.pairs import steps_taken

SHAPES = [(), (0,), (17,), (1025,), (5, 7), (9000,)]
WHOLE = {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 0.5}
OPTIONS = [
    ("AdamW", {}),
    ("AdamW", WHOLE),
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "zero_grads": True, **WHOLE}),
]


@pytest.fixture
def built(monkeypatch):
    """How many plans were built."""
    plans = []
    original = planning.Plan._bucketed

    def bucketed(*args):
        plans.append(1)
        return original(*args)

    monkeypatch.setattr(planning.Plan, "_bucketed", bucketed)
    return plans


def give_some(params, grads, present):
    for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
        p.grad = grad.clone() if i in present else None


def freshly(optimizer, params, **options):
    """The same optimizer, as if it were loaded before every step: its plan knows no earlier one."""
    fresh = type(optimizer)(params, **options)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return fresh


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_who_has_no_gradient_is_passed_over(built, backend, kind, options):
    """Parameter, state and counter stay; the others' bits are those of a plan without it."""
    params = make_params(SHAPES)
    everyone, steps = set(range(len(params))), [0] * len(params)
    optimizer = CLASSES[kind][0](params, backend=backend, **options)
    sets = [everyone, {0, 1, 3, 7}, {2, 4, 5, 8}, everyone, set(), {1}, everyone - {3}]
    for present in sets:
        grads = make_grads(params)
        twins = clones(params)
        twin = freshly(optimizer, twins, backend=backend, **options)
        give_some(params, grads, present)
        give_some(twins, grads, present)
        held = copy.deepcopy([optimizer.state.get(p) for p in params])
        before = clones(params)
        plans = len(built)
        optimizer.step()
        assert len(built) == max(1, plans)
        twin.step()
        assert_equal(params, twins)
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            steps[i] += i in present
            mine, others = optimizer.state.get(p, {}), twin.state.get(q, {})
            assert mine.keys() == others.keys()
            assert_equal(list(mine.values()), [others[key] for key in mine])
            if i not in present:
                assert_equal([p, *mine.values()], [before[i], *(held[i] or {}).values()])
        if optimizer.clip_grad_norm is not None:
            assert torch.equal(optimizer.grad_norm, twin.grad_norm)
    assert [steps_taken(optimizer, [p]) for p in params] == [{n} for n in steps]


@pytest.mark.parametrize("backend", KERNELS)
def test_a_parameter_that_joins_later_makes_one_new_plan_for_all(built, backend):
    """Whoever was there before stays in it, with or without a gradient."""
    params = make_params(SHAPES)
    twins = clones(params)
    optimizer = CLASSES["AdamW"][0](params, backend=backend, clip_grad_norm=1.0)
    twin = CLASSES["AdamW"][1](twins)
    for present in ({0, 2}, {3, 4}, {0, 4}, {2, 3}, {0, 2, 3, 4}):
        grads = make_grads(params)
        give_some(params, grads, present)
        give_some(twins, grads, present)
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(twins, 1.0)
        twin.step()
    assert len(built) == 2
    assert_equal([optimizer.state[p]["step"] for p in params if p in optimizer.state],
                 [twin.state[p]["step"] for p in twins if p in twin.state])  # fmt: skip
    torch.testing.assert_close(params, twins)


def two_params():
    return [torch.randn(n).requires_grad_() for n in (17, 33)]


def forget_its_state(optimizer, param):
    del optimizer.state[param]


def move_it(optimizer, param):
    param.data = param.data.clone()


def expand_it(optimizer, param):
    param.data = param.data[:1].expand(param.shape)


@pytest.mark.cpu
@pytest.mark.parametrize("change", [forget_its_state, move_it, expand_it])
def test_what_happens_to_it_meanwhile_is_noticed(change):
    params = two_params()
    optimizer = CLASSES["AdamW"][0](params, backend="cpu")
    give_some(params, make_grads(params), {0, 1})
    optimizer.step()
    change(optimizer, params[1])
    give_some(params, make_grads(params), {0})
    held = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], held)
    assert (params[1] in optimizer.state) == (change is not forget_its_state)
    give_some(params, make_grads(params), {0, 1})
    if change is expand_it:
        with pytest.raises(RuntimeError, match="several elements at one address"):
            optimizer.step()
        return
    optimizer.step()
    assert steps_taken(optimizer, [params[1]]) == {1 if change is forget_its_state else 2}
    assert not torch.equal(params[1], held)


def give_it_another_shape(optimizer, param):
    param.data = torch.randn(3, 11)
    optimizer.state.pop(param, None)


def lay_it_out_with_gaps(optimizer, param):
    param.data = torch.randn(66)[::2]


def switch_its_options_off(optimizer, param):
    optimizer.param_groups[1]["spectramind_lookahead_k"] = 0
    optimizer.param_groups[1]["spectramind_ema_decay"] = None


def count_further_elsewhere(optimizer, param):
    """Lookahead in another group: counters become float64, of those that step."""
    optimizer.param_groups[0]["spectramind_lookahead_k"] = 3


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
@pytest.mark.parametrize(
    "change",
    [give_it_another_shape, lay_it_out_with_gaps, switch_its_options_off, count_further_elsewhere],
)
def test_who_takes_no_part_neither_changes_nor_stops_a_step(kind, change):
    params = two_params()
    on = {"lookahead_k": 2, "ema_decay": 0.9} if change is switch_its_options_off else {}
    groups = [{"params": [p], **on} for p in params]
    options = {"lr": 0.1, "momentum": 0.0} if kind == "SGD" else {}
    optimizer = CLASSES[kind][0](groups, backend="cpu", **options)
    give_some(params, make_grads(params), {0, 1})
    optimizer.step()
    change(optimizer, params[1])
    give_some(params, make_grads(params), {0})
    held = copy.deepcopy([params[1].detach(), optimizer.state.get(params[1])])
    optimizer.step()
    assert torch.equal(params[1], held[0])
    state = optimizer.state.get(params[1])
    assert (state or {}).keys() == (held[1] or {}).keys()
    for name, value in (held[1] or {}).items():
        assert_equal([state[name]], [value])
        assert state[name].dtype == value.dtype
    assert optimizer.state[params[0]] or kind == "SGD"


@pytest.mark.cpu
def test_one_who_shares_memory_is_not_covered_while_it_is_absent():
    """Together they are torch's to step; the other alone is not."""
    memory = torch.randn(40)
    params = [memory[:30].requires_grad_(), memory[10:].detach().requires_grad_()]
    optimizer = CLASSES["AdamW"][0](params)
    give_some(params, make_grads(params), {0, 1})
    optimizer.step()
    assert len(optimizer.describe_plan().eager) == 2
    for present in ({0}, {0, 1}, {1}):
        give_some(params, make_grads(params), present)
        optimizer.step()
        assert len(optimizer.describe_plan().eager) == (2 if len(present) == 2 else 0)


@pytest.mark.cpu
def test_zeros_that_torch_has_not_made_are_not_zeroed():
    param = torch.ones(3).requires_grad_()
    optimizer = CLASSES["SGD"][0]([param], lr=0.1, zero_grads=True)
    param.grad = torch._efficientzerotensor((3,))
    optimizer.step()
    assert torch.equal(param, torch.ones(3))


@pytest.mark.cpu
def test_a_gradient_of_another_kind_is_noticed_when_it_comes_back(built):
    params = [torch.randn(17).requires_grad_(), torch.randn(4, 6).requires_grad_()]
    optimizer = CLASSES["SGD"][0](params, lr=1.0, backend="cpu")
    for turn in range(3):
        give_some(params, [torch.ones(17), torch.arange(24.0).view(4, 6)], {0, 1})
        if turn == 2:
            params[1].grad = torch.arange(24.0).view(6, 4).t()
        before = params[1].detach().clone()
        optimizer.step()
        assert torch.equal(params[1], before - params[1].grad)
        give_some(params, make_grads(params), {0})
        optimizer.step()
    assert len(built) == 2


@pytest.mark.cpu
def test_autograd_is_told_of_whoever_was_stepped_alone():
    """A GAN's other half may still be needed by a backward pass."""
    params = [torch.ones(3).requires_grad_(), torch.ones(3).requires_grad_()]
    optimizer = CLASSES["SGD"][0](params, lr=0.1, zero_grads=True, backend="cpu")
    give_some(params, make_grads(params), {0, 1})
    optimizer.step()
    saved = (params[1] ** 2).sum()
    give_some(params, make_grads(params), {0})
    optimizer.step()
    saved.backward()
    assert params[1].grad is not None
    broken = (params[0] ** 2).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        broken.backward()


@pytest.mark.cpu
def test_threads_share_the_work_of_whoever_is_there():
    """On a CPU half of the parameters are the work of all threads, not of half of them."""
    params = [torch.ones(40_000).requires_grad_() for _ in range(8)]
    optimizer = CLASSES["AdamW"][0](params, clip_grad_norm=1.0, backend="cpu")
    give_some(params, make_grads(params), set(range(8)))
    optimizer.step()
    for present in (set(range(4)), {0}, set(range(8))):
        twins = clones(params)
        twin = freshly(optimizer, twins, clip_grad_norm=1.0, backend="cpu")
        grads = make_grads(params)
        give_some(params, grads, present)
        give_some(twins, grads, present)
        optimizer.step()
        twin.step()
        assert_equal(params, twins)


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_another_set_of_participants_waits_for_nothing(gpu, monkeypatch, backend):
    """On a GPU: no plan, no operation of torch but the upload of addresses, none of them read."""
    if place.device != "cpu":
        pytest.skip("tests/gpu looks for waits on a real GPU")
    from tests.emulator.graphs import PlayedRuntime

    monkeypatch.setattr(runtime, "current", PlayedRuntime(gpu))
    params = make_params(SHAPES)
    optimizer = CLASSES["AdamW"][0](params, backend=backend, **WHOLE)
    give_some(params, make_grads(params), set(range(len(params))))
    optimizer.step()
    for present in ({0, 3}, {1, 2, 4, 5}):
        give_some(params, make_grads(params), present)
        with Operators() as operators:
            optimizer.step()
        uploads = {"aten.empty.memory_format", "aten.view.default", "aten.view.dtype",
                   "aten.copy_.default", "aten.unbind.int", "aten.detach.default"}  # fmt: skip
        assert set(operators.seen) <= (uploads if backend == "triton" else set()) | {
            "aten.lift_fresh.default"
        }


@pytest.mark.cpu
def test_a_plan_keeps_no_gradient_alive():
    params = two_params()
    optimizer = CLASSES["AdamW"][0](params, backend="cpu")
    give_some(params, make_grads(params), {0, 1})
    grads = [weakref.ref(p.grad) for p in params]
    optimizer.step()
    give_some(params, make_grads(params), set())
    gc.collect()
    assert [ref() for ref in grads] == [None, None]
