"""Whatever torch lets a user change between two steps: the next one does what torch would do.

Or it says in one sentence why not, before anything moves. The kernels work through addresses.
"""

import collections
import copy
import gc
import threading

import numpy as np
import pytest
import torch

import spectramind_fused as ours
from spectramind_fused.stepping.options import EMA_DECAY, LOOKAHEAD_ALPHA, LOOKAHEAD_K, Options
from tests import place
from tests.asserts import assert_equal, close
from tests.backends import KERNELS
from tests.inputs import clones, make_grads, set_grads
from tests.looks import look_by
from tests.oracle import CLASSES
from tests.pairs import SHAPES, pair, refused, step_alike, train

# On the CPU by every way of looking, which is the same for all backends.
on_kernels = pytest.mark.parametrize(
    ("backend", "way"),
    [*((backend, "c") for backend in KERNELS), ("cpu", "c that asks"), ("cpu", "python")],
    indirect=["way"],
)
pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture
def way(request, monkeypatch):
    """How a step looks at its tensors; by C where a test does not say it."""
    look_by(getattr(request, "param", "c"), monkeypatch)


# States

MOVES = {
    "data": lambda v: setattr(v, "data", v.data.clone()),
    "set_": lambda v: v.set_(v.clone()),
    "share_memory_": lambda v: v.share_memory_(),
    "swap_tensors": lambda v: torch.utils.swap_tensors(v, v.clone()),
}


@on_kernels
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
@pytest.mark.parametrize("how", MOVES)
def test_states_that_moved_are_followed(how, kind, backend):
    both = pair(kind, backend, **({"lr": 0.1, "momentum": 0.9} if kind == "SGD" else {}))
    keep = []  # the old memory: a kernel that still wrote there would go unnoticed by the allocator
    for optimizer, _ in both:
        for state in optimizer.state.values():
            for value in state.values():
                keep.append(value.detach().untyped_storage())
                MOVES[how](value)
    step_alike(both)
    (optimizer, params), (theirs, torchs) = both
    for p, t in zip(params, torchs, strict=True):
        for name, value in theirs.state[t].items():
            close([optimizer.state[p][name]], [value])


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_states_sent_to_another_process_are_followed(kind):
    """torch moves the memory that it sends into shared memory, in place."""
    both = pair(kind, "cpu", **({"lr": 0.1, "momentum": 0.9} if kind == "SGD" else {}))
    context = torch.multiprocessing.get_context("spawn")
    for optimizer, _ in both:
        queue = context.SimpleQueue()
        queue.put(optimizer.state_dict())
        queue.get()
    step_alike(both)


@on_kernels
def test_a_state_of_another_dtype_in_the_same_place_is_followed(backend):
    ((optimizer, params), _) = pair("AdamW", backend)
    state = optimizer.state[params[2]]
    memory = torch.zeros(2100)
    state["exp_avg"].data = memory
    train([(optimizer, params)], 2, 1)
    state["exp_avg"].data = memory.view(torch.bfloat16)[:2100]
    after = memory[1050:].clone()
    train([(optimizer, params)], 2, 1)
    assert state["exp_avg"].dtype == torch.bfloat16
    assert torch.equal(memory[1050:], after)


@on_kernels
@pytest.mark.parametrize("change", ["t_", "exchanged", "exchanged in a new dict", "negated", "one"])
def test_states_that_lie_or_are_named_otherwise_are_followed(change, backend):
    both = pair("AdamW", backend, amsgrad=True, betas=(0.9, 0.5))
    for optimizer, params in both:
        state = optimizer.state[params[1]]
        if change == "t_":
            state["exp_avg"].t_()
        elif change == "exchanged":
            swapped = state["exp_avg_sq"], state["exp_avg"].abs_()
            state["exp_avg"], state["exp_avg_sq"] = swapped
        elif change == "exchanged in a new dict":
            first, second = state["exp_avg"].abs_(), state["exp_avg_sq"]
            optimizer.state[params[1]] = {
                "step": state["step"],
                "exp_avg_sq": first,
                "exp_avg": second,
                "max_exp_avg_sq": state["max_exp_avg_sq"],
            }
        elif change == "negated":
            state["exp_avg"] = torch._neg_view(state["exp_avg"])
        else:
            state["max_exp_avg_sq"] = state["exp_avg_sq"]
    step_alike(both)


@on_kernels
def test_a_state_negated_where_it_lies_is_followed(backend):
    both = pair("AdamW", backend)
    for optimizer, params in both:
        value = optimizer.state[params[2]]["exp_avg"]
        value.data = torch._neg_view(value.data)
    step_alike(both)


@on_kernels
def test_two_parameters_with_one_state_are_stepped_as_by_torch(backend):
    both = pair("AdamW", backend, [(9,), (9,), (9,)])
    for optimizer, params in both:
        first, second, _ = (optimizer.state[p] for p in params)
        second["exp_avg"] = first["exp_avg"]
        second["step"] = first["step"]
    step_alike(both)


@on_kernels
@pytest.mark.parametrize("name", ["slow_weights", "ema_weights"])
def test_slow_and_averaged_weights_that_were_replaced_are_followed(name, backend):
    def run(change):
        torch.manual_seed(0)
        params = [torch.randn(40).requires_grad_()]
        optimizer = ours.FusedAdamW(params, backend=backend, lookahead_k=2, ema_decay=0.9)
        train([(optimizer, params)], 1, 2)
        change(optimizer.state[params[0]])
        gc.collect()
        train([(optimizer, params)], 2, 2)
        return [params[0], *optimizer.state[params[0]].values()]

    def replace(state):
        state[name] = torch.full((40,), 2.0)

    assert_equal(
        run(lambda state: setattr(state[name], "data", torch.full((40,), 2.0))), run(replace)
    )
    assert_equal(run(lambda state: state[name].fill_(2.0)), run(replace))


# Parameters


@on_kernels
def test_a_parameter_transposed_where_it_lies_is_followed(backend):
    both = pair("AdamW", backend)
    for seed in (5, 6):  # a contiguous gradient at both steps
        torch.manual_seed(seed)
        grads = [torch.randn(shape) for shape in SHAPES]
        for optimizer, params in both:
            if seed == 5:
                params[1].data = params[1].data.t()
            set_grads(params, grads)
            optimizer.step()
    close(both[0][1], both[1][1])


@on_kernels
@pytest.mark.parametrize("change", ["swap_tensors", "negated", "view of a larger one"])
def test_parameters_that_lie_otherwise_are_followed(change, backend):
    both = pair("AdamW", "auto" if backend == "cpu" else backend)
    for _, params in both:
        if change == "swap_tensors":
            params[1].grad = None
            torch.utils.swap_tensors(params[1], torch.ones(4, 4).requires_grad_())
        elif change == "negated":
            if backend != "cpu":
                pytest.skip("a named backend refuses it")
            params[1].data = torch._neg_view(params[1].data)
        else:
            params[1].data = torch.cat([params[1].data.flatten(), torch.ones(3)])[1:17].view(4, 4)
    step_alike(both)


@pytest.mark.cpu
def test_a_named_backend_refuses_a_negated_parameter():
    ((optimizer, params), _) = pair("AdamW", "cpu")
    params[1].data = torch._neg_view(params[1].data)
    refused(optimizer, params, ValueError, r"negated only when it is read \(resolve_neg\(\)")


@on_kernels
def test_a_parameter_moved_to_another_group_has_that_ones_options(backend):
    torch.manual_seed(0)
    params = [torch.randn(9).requires_grad_() for _ in range(4)]
    torchs = clones(params)
    both = []
    for cls, mine in ((ours.FusedAdamW, params), (torch.optim.AdamW, torchs)):
        groups = [{"params": mine[:2], "lr": 0.0}, {"params": mine[2:], "lr": 0.1}]
        options = {"backend": backend} if cls is ours.FusedAdamW else {"foreach": False}
        both.append((cls(groups, **options), mine))
    train(both, 1, 2)
    for optimizer, _ in both:
        first, second = (group["params"] for group in optimizer.param_groups)
        second.insert(0, first.pop())  # the order of all parameters stays
    step_alike(both)
    for optimizer, mine in both:  # in exchange, so that each group keeps its number
        mine[0].grad = mine[3].grad = None
        first, second = (group["params"] for group in optimizer.param_groups)
        first.append(second.pop(0))
        second.insert(0, first.pop(0))
    step_alike(both)


@on_kernels
def test_a_parameter_cut_to_a_slice_refuses_its_old_gradient(backend):
    ((optimizer, params), _) = pair("SGD", backend, lr=0.1)
    set_grads(params, make_grads(params))
    whole = params[2].data
    params[2].data = whole[:100]
    before = whole.clone()
    message = r"shape \(100,\) on .* has a gradient of shape \(2100,\) on .*: set its .grad to"
    refused(optimizer, params, RuntimeError, message)
    assert torch.equal(whole, before)


@on_kernels
def test_a_view_of_another_dtype_in_the_same_place_writes_nothing_outside(backend):
    ((optimizer, params), _) = pair("SGD", backend, lr=0.1)
    set_grads(params, make_grads(params))
    whole = params[2].data
    params[2].data = whole.view(torch.bfloat16)
    refused(optimizer, params, RuntimeError, r"shape \(4200,\) .* gradient of shape \(2100,\)")
    params[2].data = whole.view(torch.bfloat16)[:2100]
    before = whole[1050:].clone()
    optimizer.step()  # a float32 gradient of a bfloat16 parameter: served
    assert torch.equal(whole[1050:], before)


@pytest.mark.parametrize("backend", [*KERNELS, "eager"])
@pytest.mark.parametrize("what", ["parameter", "gradient", "state", "step counter"])
def test_memory_that_is_gone_is_said_in_words(what, backend):
    ((optimizer, params), _) = pair("AdamW", backend)
    set_grads(params, make_grads(params))
    params[2].grad = torch.zeros(2200)[100:]  # 400 bytes behind where its memory begins
    tensor = {
        "parameter": params[2],
        "gradient": params[2].grad,
        "state": optimizer.state[params[2]]["exp_avg"],
        "step counter": optimizer.state[params[2]]["step"],
    }[what]
    bytes_before = tensor.untyped_storage().nbytes()
    for size in (0, 3):
        tensor.untyped_storage().resize_(size)
        with pytest.raises(RuntimeError, match=rf"{what} .*has no memory: its storage was resized"):
            optimizer.step()
    tensor.untyped_storage().resize_(bytes_before)
    tensor.detach().fill_(2)
    optimizer.step()


@on_kernels
def test_a_gradient_cut_to_half_is_noticed(backend):
    param = torch.zeros(1000, requires_grad=True)
    optimizer = ours.FusedSGD([param], lr=0.1, backend=backend)
    for size in (4000, 2000):
        param.grad = torch.zeros(1000)
        param.grad.untyped_storage().resize_(size)
        if size == 4000:
            optimizer.step()
    with pytest.raises(RuntimeError, match=r"The gradient of a parameter .*has no memory"):
        optimizer.step()


@on_kernels
def test_a_gradient_far_into_memory_that_is_gone_is_noticed(backend):
    """What is left of its address then looks like an address."""
    param = torch.zeros(3, requires_grad=True)
    optimizer = ours.FusedSGD([param], lr=0.1, backend=backend)
    param.grad = torch.zeros(3)
    optimizer.step()
    bucket = torch.empty(5 * 2**30 // 4)
    param.grad = bucket[-3:].zero_()
    optimizer.step()
    bucket.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"The gradient of a parameter .*has no memory"):
        optimizer.step()


@on_kernels
def test_zeros_that_torch_has_not_made_yet_are_a_gradient(backend):
    ((optimizer, params), (theirs, torchs)) = both = pair("SGD", backend, lr=0.1, momentum=0.9)
    for zeros in (False, True, False):
        for _, mine in both:
            torch.manual_seed(3)
            set_grads(mine, make_grads(mine))
            if zeros:
                mine[1].grad = torch._efficientzerotensor((4, 4), device=place.device)
        optimizer.step()
        theirs.step()
    close(params, torchs)
    optimizer.state[params[1]]["momentum_buffer"] = torch._efficientzerotensor(
        (4, 4), device=place.device
    )
    set_grads(params, make_grads(params))
    with pytest.raises(RuntimeError, match=r"'momentum_buffer' of a parameter .*has no memory"):
        optimizer.step()


# Step counters


@pytest.mark.cpu
@on_kernels
@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize(
    ("step", "match"),
    [
        (torch.empty(0), r"has shape \(0,\)"),
        (torch.zeros(3), r"has shape \(3,\)"),
        (torch.tensor(-5.0), r"is -5"),
        (torch.tensor(float("nan")), r"is nan"),
        (torch.tensor(2.5), r"is 2.5"),
        ("5 steps", r"is '5 steps'"),
    ],
)
def test_a_damaged_step_counter_is_refused(step, match, load, backend):
    ((optimizer, params), _) = pair("AdamW", backend)
    message = rf"step counter of a parameter of shape \(4, 4\) {match}, not a number of steps"
    if load:
        saved = optimizer.state_dict()
        saved["state"][1] = {**saved["state"][1], "step": step}
        before = clones(params)
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(saved)
        assert int(optimizer.state[params[1]]["step"]) == 2
        assert_equal(params, before)
    else:
        optimizer.state[params[1]]["step"] = step
        set_grads(params, make_grads(params))
        refused(optimizer, params, ValueError, message)


@pytest.mark.parametrize("backend", [*KERNELS, "eager"])
def test_an_entry_that_was_lost_is_said_in_words(backend):
    ((optimizer, params), _) = pair("AdamW", backend)
    set_grads(params, make_grads(params))
    step = optimizer.state[params[1]].pop("step")
    refused(optimizer, params, ValueError, r"shape \(4, 4\) has 'exp_avg' and no 'step'")
    with pytest.raises(ValueError, match=r"counter of a parameter of shape \(4, 4\) is missing"):
        optimizer.load_state_dict(optimizer.state_dict())
    optimizer.state[params[1]]["step"] = step
    optimizer.step()


@pytest.mark.parametrize("backend", [*KERNELS, "eager"])
@pytest.mark.parametrize(
    ("state", "match"),
    [
        (torch.zeros(4, 4, dtype=torch.int32), r"'exp_avg' .* is torch.int32, the parameter"),
        (torch.zeros(4, 4, dtype=torch.complex64), r"'exp_avg' .* is torch.complex64"),
        (torch.zeros(4, 4, device="meta"), r"'exp_avg' of shape \(4, 4\) on meta does not fit"),
        (0.5, r"'exp_avg' of shape float does not fit"),
    ],
)
def test_a_state_of_another_kind_is_refused(state, match, backend):
    ((optimizer, params), _) = pair("AdamW", backend)
    set_grads(params, make_grads(params))
    optimizer.state[params[1]]["exp_avg"] = state
    held = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    assert_equal(params, held)


def test_parameters_on_meta_are_stepped_as_by_torch():
    for kind, options in (("SGD", {"lr": 0.1, "momentum": 0.9}), ("AdamW", {}), ("Lion", {})):
        params = [
            torch.zeros(3, requires_grad=True),
            torch.zeros(3, device="meta").requires_grad_(),
        ]
        optimizer = CLASSES[kind][0](params, **options)
        train([(optimizer, params)], 1, 3)


@pytest.mark.cpu
def test_a_step_counter_damaged_in_place_is_refused_before_anything_moves():
    params = [torch.randn(5, dtype=d).requires_grad_() for d in (torch.float32, torch.float64)]
    optimizer = ours.FusedAdamW(params, backend="cpu")
    train([(optimizer, params)], 1, 2)
    set_grads(params, make_grads(params))
    optimizer.state[params[1]]["step"].fill_(-5)
    refused(optimizer, params, ValueError, r"shape \(5,\) is -5, not a number of steps")
    optimizer.state[params[1]]["step"].fill_(2)
    optimizer.step()


# Hyperparameters


@on_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_lr_is_followed_wherever_it_goes(dtype, backend):
    both = pair("SGD", backend, lr=torch.tensor(0.5, dtype=dtype))
    for value in (
        lambda: torch.tensor(0.25, dtype=dtype),
        lambda: torch._neg_view(torch.tensor(-0.125, dtype=dtype)),
        lambda: torch.tensor(0.5, dtype=torch.float64),
        lambda: torch.tensor([0.25]),
        lambda: torch.tensor(0.5, dtype=torch.bfloat16),
        lambda: np.float32(0.25),
        lambda: 0.125,
    ):
        for optimizer, _ in both:
            optimizer.param_groups[0]["lr"] = value()
        gc.collect()
        step_alike(both)
    for optimizer, _ in both:
        lr = optimizer.param_groups[0]["lr"] = torch.tensor(0.5)
    step_alike(both)
    for optimizer, _ in both:
        lr = optimizer.param_groups[0]["lr"]
        lr.data = torch.tensor(0.25)
    step_alike(both)


@on_kernels
def test_a_numpy_lr_changed_in_place_is_followed(backend):
    both = pair("SGD", backend, lr=0.5)
    lr = np.array(0.25)
    for optimizer, _ in both:
        optimizer.param_groups[0]["lr"] = lr
    step_alike(both)
    lr[...] = 0.125
    step_alike(both)


@on_kernels
@pytest.mark.parametrize("limit", [np.array(100.0), torch.tensor(100.0, dtype=torch.bfloat16)])
def test_a_limit_of_the_norm_changed_in_place_is_followed(limit, backend):
    limit = copy.deepcopy(limit)
    params = [torch.zeros(9).requires_grad_()]
    optimizer = CLASSES["SGD"][0](params, lr=1.0, clip_grad_norm=limit, backend=backend)
    params[0].grad = torch.ones(9)
    optimizer.step()
    optimizer.step()
    limit *= 0
    limit += 1.5
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.full((9,), -2.5))


@on_kernels
@pytest.mark.parametrize("whose", ["the optimizer's", "a parameter's"])
def test_a_state_in_a_dict_of_another_kind_is_stepped_with(whose, backend):
    both = pair("AdamW", backend)
    ((optimizer, params), _) = both
    if whose == "the optimizer's":
        optimizer.state = collections.UserDict(optimizer.state)
    else:
        optimizer.state[params[1]] = collections.UserDict(optimizer.state[params[1]])
    step_alike(both)


@on_kernels
@pytest.mark.parametrize("lr", [torch.ones(2), torch.empty(0), "fast"])
def test_a_hyperparameter_that_is_not_one_number_is_refused(lr, backend):
    ((optimizer, params), _) = pair("SGD", backend, lr=0.5)
    optimizer.param_groups[0]["lr"] = lr
    set_grads(params, make_grads(params))
    refused(optimizer, params, ValueError, r"A hyperparameter is .*: give one number")


@pytest.mark.parametrize("backend", [*KERNELS, "eager"])
@pytest.mark.parametrize(
    ("key", "value"), [("lookahead_k", -3), ("lookahead_alpha", 7.0), ("ema_decay", 9.0)]
)
def test_an_option_out_of_range_is_refused_wherever_it_comes_from(key, value, backend):
    ((optimizer, params), _) = pair("SGD", backend, lr=0.5)
    saved = optimizer.state_dict()
    saved["param_groups"][0][f"spectramind_{key}"] = value
    with pytest.raises(ValueError, match=rf"Invalid {key} {value}"):
        optimizer.load_state_dict(saved)
    assert Options.of(optimizer.param_groups[0]) == Options()
    optimizer.param_groups[0][f"spectramind_{key}"] = value
    set_grads(params, make_grads(params))
    refused(optimizer, params, ValueError, rf"Invalid {key} {value}")


@pytest.mark.cpu
def test_options_of_ours_in_tensors_and_of_numpy_are_looked_at():
    ((optimizer, params), _) = pair("SGD", "cpu", lr=0.5)
    alpha = torch.tensor(0.5)
    optimizer.param_groups[0].update({LOOKAHEAD_K: np.int64(2), LOOKAHEAD_ALPHA: alpha})
    train([(optimizer, params)], 3, 2)
    assert torch.equal(params[0], optimizer.state[params[0]]["slow_weights"])
    alpha.fill_(7)
    set_grads(params, make_grads(params))
    refused(optimizer, params, ValueError, r"Invalid lookahead_alpha tensor\(7.\)")


# Gradients


@on_kernels
@pytest.mark.parametrize("size", [9, 100_000])
@pytest.mark.parametrize("overlap", ["same", "reaching over"])
def test_zeroing_waits_for_all_who_share_a_gradient(overlap, size, backend):
    params = [torch.ones(size).requires_grad_() for _ in range(3)]
    optimizer = ours.FusedSGD(params, lr=0.5, zero_grads=True, backend=backend)
    for step in range(3):
        base = torch.ones(size + 2)
        for i, p in enumerate(params):
            at = i if overlap == "reaching over" else 0
            p.grad = base[at : at + size] if step != 1 else torch.ones(size)
        optimizer.step()
        for p in params:
            assert torch.equal(p, torch.full((size,), 1 - 0.5 * (step + 1)))
            assert not p.grad.any()
        if step == 1:  # shared from now on, beside a plan made for gradients of their own
            optimizer = ours.FusedSGD(params, lr=0.5, zero_grads=True, backend=backend)
            for p in params:
                p.grad = torch.zeros(size)
            optimizer.step()
    fresh = torch.ones(size)  # shared where none was at the same addresses before
    for p in params:
        p.grad = fresh
    optimizer.step()
    for p in params:
        assert torch.equal(p, torch.full((size,), -1.0))


# Options switched off and on


@pytest.mark.parametrize("backend", [*KERNELS, "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lookahead_and_averages_begin_anew_when_they_are_switched_on_again(dtype, backend):
    torch.manual_seed(0)
    params = [torch.randn(9).to(dtype).requires_grad_()]
    optimizer = ours.FusedSGD(params, lr=0.1, lookahead_k=2, ema_decay=0.9, backend=backend)
    train([(optimizer, params)], 1, 3)
    (group,) = optimizer.param_groups
    group.update({LOOKAHEAD_K: 0, EMA_DECAY: None})
    train([(optimizer, params)], 2, 4)
    assert not {"slow_weights", "ema_weights"} & optimizer.state[params[0]].keys()
    group.update({LOOKAHEAD_K: 100, EMA_DECAY: 0.5})
    before = params[0].detach().clone()
    set_grads(params, make_grads(params))
    optimizer.step()
    state = optimizer.state[params[0]]
    assert torch.equal(state["slow_weights"], before)
    # the average takes the parameter before it is rounded
    close([state["ema_weights"].to(dtype)], [(before + params[0].detach()) / 2])


# Errors in the middle


def test_averaged_weights_leave_the_parameters_whatever_happened_inside():
    params = [torch.randn(5).requires_grad_() for _ in range(4)]
    optimizer = ours.FusedAdamW(params, lr=0.1, ema_decay=0.5)
    train([(optimizer, params)], 1, 3)
    trained = clones(params)
    with optimizer.ema_weights():
        params[0].data = torch.zeros(2)
        params[1].data = params[1].data.clone()
        params[2].data = params[2].data.double()
    assert_equal([p.float() for p in params], trained)
    params[2].data = params[2].data.float()
    with pytest.raises(KeyError), optimizer.ema_weights():
        params[1].data = {}["nothing"]
    assert_equal(params, trained)
    train([(optimizer, params)], 2, 1)

    trained = clones(params)
    with optimizer.ema_weights():
        params[0].data = torch.zeros(1).expand(5)
    assert_equal(params, trained)

    optimizer.state[params[2]]["ema_weights"].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"The average of shape .*has no memory"):
        optimizer.ema_weights().__enter__()
    del optimizer.state[params[2]]["ema_weights"]
    optimizer.state[params[3]]["ema_weights"] = torch.zeros(1)
    trained = clones(params)
    with pytest.raises(ValueError, match=r"average of shape \(1,\) does not fit"):
        optimizer.ema_weights().__enter__()
    assert_equal(params, trained)


def test_a_hook_that_raises_leaves_no_check_for_inf_behind():
    param = torch.ones(3, requires_grad=True)
    optimizer = ours.FusedSGD([param], lr=0.5)

    def raises(*_):
        raise KeyError

    hook = optimizer.register_step_pre_hook(raises)
    scaler = ours.GradScaler("cpu", init_scale=4.0)
    scaler.scale(param.sum()).backward()
    with pytest.raises(KeyError):
        scaler.step(optimizer)
    hook.remove()
    param.grad = torch.tensor([1.0, float("inf"), 1.0])
    optimizer.step()  # a plain step: nothing is unscaled, and inf is no reason to skip it
    assert param.tolist() == [0.5, float("-inf"), 0.5]


@on_kernels
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_what_a_scaler_leaves_is_one_number(name, backend):
    ((optimizer, params), _) = pair("SGD", backend, lr=0.5)
    set_grads(params, make_grads(params))
    setattr(optimizer, name, torch.empty(0))
    refused(optimizer, params, ValueError, r"one number each, not of shape \(0,\)")


def test_two_threads_in_one_step_are_told_so():
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = ours.FusedSGD([param], lr=0.5)
    inside, go_on = threading.Event(), threading.Event()
    serve = optimizer._fused_step

    def slow():
        inside.set()
        go_on.wait(10)
        serve()

    optimizer._fused_step = slow
    thread = threading.Thread(target=optimizer.step)
    thread.start()
    inside.wait(10)
    with pytest.raises(RuntimeError, match="running in another thread"):
        optimizer.step()
    go_on.set()
    thread.join()
    optimizer._fused_step = serve
    optimizer.step()
    assert torch.equal(param, torch.zeros(3))


@on_kernels
@pytest.mark.parametrize("zero_grads", [False, True])
@pytest.mark.parametrize("of", ["parameter", "state", "gradient"])
@pytest.mark.parametrize("begins", ["as a copy", "by being copied"])
def test_a_lazy_copy_keeps_what_it_held(begins, of, zero_grads, backend):
    """Torch copies the memory when either is written to; a kernel would write to both."""
    param = torch.nn.Parameter(torch.randn(64, device=place.device))
    optimizer = ours.FusedAdamW([param], zero_grads=zero_grads, backend=backend)
    for _ in range(3):
        param.grad = torch.randn_like(param)
        optimizer.step()
    param.grad = torch.randn_like(param)
    held = {
        "parameter": param.data, "state": optimizer.state[param]["exp_avg"], "gradient": param.grad
    }[of]  # fmt: skip
    if begins == "by being copied":
        other = held._lazy_clone()
    else:
        other = torch.randn_like(param).detach()
        lazy = other._lazy_clone()
        if of == "parameter":
            param.data = lazy
        elif of == "state":
            optimizer.state[param]["exp_avg"] = lazy
        else:
            param.grad = lazy
    before = other + 0
    optimizer.step()
    optimizer.step()
    assert torch.equal(other + 0, before)
