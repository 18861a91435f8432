"""State: checkpoints both ways, copies, and whatever changes between two steps."""

import copy
import io
import pickle
import weakref

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from spectramind_fused.optim import Options
from spectramind_fused.stepping.options import LOOKAHEAD_K
from tests.asserts import assert_equal, assert_within_ulps, close
from tests.backends import BACKENDS, GPU_KERNELS, KERNELS
from tests.inputs import clones, for_kind, make_grads, make_params, set_grads
from tests.oracle import CLASSES, VARIANTS, name_of, torchs_options
from tests.pairs import train

SHAPES = [(), (0,), (17,), (1025,)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_a_checkpoint_goes_from_torch_to_ours_and_back(variant, backend):
    kind, options = variant
    torchs = make_params(for_kind(SHAPES, kind))
    theirs = CLASSES[kind][1](torchs, **options)
    train([(theirs, torchs)], 1)

    params = clones(torchs)
    ours = CLASSES[kind][0](params, backend=backend, **options)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    train([(theirs, torchs), (ours, params)], 2)
    close(params, torchs)

    back = clones(params)
    again = CLASSES[kind][1](back, **options)
    again.load_state_dict(copy.deepcopy(ours.state_dict()))
    train([(theirs, torchs), (again, back)], 3)
    close(back, torchs)
    for key, value in theirs.state.get(torchs[-1], {}).items():
        assert again.state[back[-1]][key].shape == value.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_of_lookahead_and_live_flags_survive_a_checkpoint_of_torchs(backend):
    params = make_params(SHAPES)
    theirs = torch.optim.AdamW(params, foreach=True, fused=False)
    train([(theirs, params)], 1)
    ours = CLASSES["AdamW"][0](params, lookahead_k=5, lookahead_alpha=0.7, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    group = ours.param_groups[0]
    assert Options.of(group)[:3] == (5, 0.7, None)
    assert (group["foreach"], group["fused"]) == (None, None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copied_optimizer_steps_its_own_parameters(copied, backend):
    params = make_params(SHAPES)
    optimizer = CLASSES["AdamW"][0](params, lookahead_k=2, backend=backend)
    train([(optimizer, params)], 1)
    twin = copied(optimizer)
    twins = twin.param_groups[0]["params"]
    before = clones(params)
    train([(twin, twins)], 2)
    assert_equal(params, before)
    train([(optimizer, params)], 2)
    assert_equal(params, twins)
    assert twin.backends() == optimizer.backends()


@pytest.mark.parametrize("backend", BACKENDS)
def test_loading_copies_and_never_shares(backend):
    params = make_params(SHAPES)
    optimizer = CLASSES["SGD"][0](params, lr=0.1, momentum=0.9, backend=backend)
    train([(optimizer, params)], 1)
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    twins = clones(params)
    twin = CLASSES["SGD"][0](twins, lr=0.1, momentum=0.9, backend=backend)
    twin.load_state_dict(saved)
    train([(twin, twins)], 2)
    for index, state in kept["state"].items():
        for key, value in state.items():
            assert torch.equal(saved["state"][index][key], value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_creating_the_state_by_a_step_of_lr_0_leaves_no_trace(backend):
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.LayerNorm(5))
    params = list(model.parameters())
    before = clones(params)
    optimizer = CLASSES["AdamW"][0](params, lookahead_k=1, backend=backend)
    get_optimizer_state_dict(model, optimizer)
    assert_equal(params, before)
    assert optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("AdamW", "SGD"),
        ("SGD", "AdamW"),
        ("SGD", "RMSprop"),
        ("Adam", "Adamax"),
        ("Adam", "RAdam"),
        ("AdamW", "RAdam"),
        ("RAdam", "Adam"),
        ("RAdam", "NAdam"),
        ("NAdam", "RAdam"),
    ],
)
def test_a_checkpoint_of_another_optimizer_is_refused_and_changes_nothing(kind, other):
    params = make_params(for_kind(SHAPES, kind))
    optimizer = CLASSES[kind][0](params, lr=0.1)
    train([(optimizer, params)], 1)
    before = copy.deepcopy(optimizer.state_dict())
    strangers = clones(params)
    stranger = getattr(torch.optim, other)(strangers, lr=0.2)
    train([(stranger, strangers)], 1)
    with pytest.raises(ValueError, match=r"of another optimizer: it (has|lacks)"):
        optimizer.load_state_dict(stranger.state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, state in before["state"].items():
        assert_equal(after["state"][index].values(), state.values())


@pytest.mark.parametrize("number", [torch.ones(3), "x", None], ids=str)
def test_a_number_that_is_none_is_refused_and_changes_nothing(number):
    params = make_params(SHAPES)
    optimizer = CLASSES["NAdam"][0](params)
    train([(optimizer, params)], 1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["mu_product"] = number
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"'mu_product' of a parameter .* not one number"):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["state"][0]["mu_product"] is before["state"][0]["mu_product"]


def test_a_checkpoint_of_a_class_that_had_no_kernels_counts_by_torchs_step():
    params = make_params(SHAPES)
    optimizer = CLASSES["NAdam"][0](params, lookahead_k=2)
    train([(optimizer, params)], 1)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["lookahead_step"] = 1
    optimizer.load_state_dict(saved)
    assert all("lookahead_step" not in state for state in optimizer.state.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sum_that_is_made_later_begins_as_torchs_does(backend):
    """By the optimizer's default, whatever stands in the group."""
    both = []
    for cls, options in ((CLASSES["Adagrad"][0], {"backend": backend}), (torch.optim.Adagrad, {})):
        torch.manual_seed(0)
        params = make_params(SHAPES)
        optimizer = cls(params[:2], **options)
        optimizer.add_param_group({"params": params[2:], "initial_accumulator_value": 0.5})
        del optimizer.param_groups[1]["initial_accumulator_value"]
        train([(optimizer, params)], 1)
        both.append(params)
    for p, twin in zip(*both, strict=True):
        torch.testing.assert_close(p, twin)


def test_what_processes_share_they_share_in_another_layout():
    param = torch.randn(2, 3, 4, 4).requires_grad_()
    optimizer = CLASSES["Adagrad"][0]([param])
    optimizer.share_memory()
    param.data = param.data.to(memory_format=torch.channels_last)
    train([(optimizer, [param])], 1)
    assert optimizer.state[param]["sum"].stride() == param.stride()
    assert optimizer.state[param]["sum"].is_shared()


def test_an_option_that_is_not_the_classs_own_may_stand_in_a_group():
    """As where a program gives every optimizer groups without weight decay."""
    made = []
    for _ in range(2):
        params = make_params(SHAPES)
        groups = [{"params": params, "weight_decay": 0.0}]
        made.append((CLASSES["Rprop"][0](groups), params))
    train(made[:1], 2)
    made[1][0].load_state_dict(made[0][0].state_dict())
    without = CLASSES["Rprop"][0](make_params(SHAPES))
    with pytest.raises(ValueError, match="of another optimizer: it has 'weight_decay'"):
        without.load_state_dict(made[0][0].state_dict())


def test_a_checkpoint_of_other_shapes_is_refused():
    params = make_params([(3,), (4,)])
    optimizer = CLASSES["AdamW"][0](params)
    train([(optimizer, params)], 1)
    other = CLASSES["AdamW"][0](make_params([(3,), (5,)]))
    with pytest.raises(ValueError, match=r"'exp_avg' of parameter 1 has shape \(4,\)"):
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
def test_whatever_changes_between_steps_is_noticed(backend):
    """Each change would leave a stale address behind if the plan were kept."""
    params, torchs = make_params(SHAPES), []
    torchs = clones(params)
    ours = CLASSES["AdamW"][0](params, backend=backend)
    theirs = CLASSES["AdamW"][1](torchs, foreach=False)

    def both(change):
        for optimizer, mine in ((ours, params), (theirs, torchs)):
            change(optimizer, mine)
        train([(ours, params), (theirs, torchs)], 5)
        close(params, torchs)

    def swap_data(optimizer, mine):
        mine[3].data = mine[3].data * 2

    def replace_state(optimizer, mine):
        optimizer.state[mine[2]]["exp_avg"] = torch.ones_like(mine[2])

    def replace_state_dict(optimizer, mine):
        state = optimizer.state[mine[2]]
        optimizer.state[mine[2]] = {k: v.clone() for k, v in state.items()}

    def forget_state(optimizer, mine):
        optimizer.state.clear()

    def add_group(optimizer, mine):
        torch.manual_seed(7)
        mine.append(torch.randn(11).requires_grad_())
        optimizer.add_param_group({"params": [mine[-1]], "lr": 0.1})

    def replace_param(optimizer, mine):
        mine[2] = torch.ones(19).requires_grad_()
        optimizer.param_groups[0]["params"][2] = mine[2]

    def change_options(optimizer, mine):
        optimizer.param_groups[0].update(lr=0.05, betas=(0.5, 0.9), weight_decay=0.5)

    both(lambda *_: None)
    for change in (swap_data, replace_state, replace_state_dict, forget_state, add_group,
                   replace_param, change_options):  # fmt: skip
        both(change)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_an_entry_that_is_of_no_parameter_survives(kind, backend):
    params = make_params(for_kind(SHAPES, kind))
    torchs = clones(params)
    ours = CLASSES[kind][0](params, lr=0.01, backend=backend)
    theirs = CLASSES[kind][1](torchs, lr=0.01)
    ours.register_load_state_dict_post_hook(lambda o: o.state.__setitem__("loaded", True))
    both = [(ours, params), (theirs, torchs)]
    train(both, 1, 1)
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    train(both, 2, 2)
    assert ours.state["loaded"] is True
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    train(both, 3, 1)
    close(params, torchs)


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_the_pickled_state_of_torchs_class_is_taken(kind):
    params = make_params(for_kind(SHAPES, kind))
    torchs = clones(params)
    theirs = CLASSES[kind][1](torchs, lr=0.01)
    train([(theirs, torchs)], 1, 1)
    twin = CLASSES[kind][1](params, lr=0.01)
    train([(twin, params)], 1, 1)
    ours = object.__new__(CLASSES[kind][0])
    ours.__setstate__(twin.__getstate__())
    train([(ours, params), (theirs, torchs)], 2, 2)
    close(params, torchs)
    assert ours.backends() == {"cpu": "cpu"}


def with_names_of_0_1(group):
    """Version 0.1 kept all options of ours in every group, under the constructor's names."""
    others = {key: value for key, value in group.items() if not key.startswith("spectramind_")}
    return {**others, **Options.of(group)._asdict()}


@pytest.mark.cpu
@pytest.mark.parametrize("options", [{}, {"lookahead_k": 3, "ema_decay": 0.5}], ids=["off", "on"])
def test_a_pickle_of_version_0_1_is_taken(options):
    params = make_params(SHAPES)
    torchs = clones(params)
    optimizer = CLASSES["AdamW"][0](params, backend="cpu", **options)
    twin = CLASSES["AdamW"][0](torchs, backend="cpu", **options)
    train([(optimizer, params), (twin, torchs)], 1, 1)
    state = optimizer.__getstate__()
    state["backend"] = state.pop("_backend")
    state["_ours"] = Options(**options)._asdict()
    state["defaults"] = with_names_of_0_1(state["defaults"])
    state["param_groups"] = list(map(with_names_of_0_1, state["param_groups"]))
    del state["_counters"]
    old = object.__new__(type(optimizer))
    old.__setstate__(copy.copy(state))
    assert old.backend == "cpu"
    assert old.state_dict()["param_groups"] == twin.state_dict()["param_groups"]
    assert old.defaults == twin.defaults
    train([(old, params), (twin, torchs)], 2, 4)
    assert_equal(params, torchs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"lookahead_k": 2, "ema_decay": 0.5}], ids=["off", "on"])
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_checkpoint_of_version_0_1_is_taken(kind, options, backend):
    params = make_params(for_kind(SHAPES, kind))
    twins = clones(params)
    hyperparameters = {"lr": 0.1, **({"momentum": 0.9} if kind == "SGD" else {})}
    optimizer = CLASSES[kind][0](params, backend=backend, **hyperparameters, **options)
    twin = CLASSES[kind][0](twins, backend=backend, **hyperparameters)
    train([(optimizer, params)], 1, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"] = list(map(with_names_of_0_1, saved["param_groups"]))
    for state in saved["state"].values():
        state.setdefault("step", torch.tensor(3.0))  # SGD had one, too
    kept = copy.deepcopy(saved)
    twin.load_state_dict(saved)
    assert saved["param_groups"] == kept["param_groups"]
    assert twin.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for p, t in zip(params, twins, strict=True):
        t.data.copy_(p.data)
    train([(optimizer, params), (twin, twins)], 2, 4)
    assert_equal(params, twins)
    assert twin.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
    assert twin.state[twins[0]].keys() == optimizer.state[params[0]].keys()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_with_our_options_off_a_state_dict_is_torchs_key_by_key(variant, backend):
    kind, options = variant
    params = make_params(for_kind(SHAPES, kind))
    torchs = clones(params)
    ours = CLASSES[kind][0](params, backend=backend, zero_grads=True, clip_grad_norm=9.0, **options)
    theirs = CLASSES[kind][1](torchs, **options)
    for seed in range(3):
        assert list(ours.defaults) == list(theirs.defaults)
        mine, torchs_own = ours.state_dict(), theirs.state_dict()
        assert mine["param_groups"] == torchs_own["param_groups"]
        assert mine["state"].keys() == torchs_own["state"].keys()
        for index, state in torchs_own["state"].items():
            assert mine["state"][index].keys() == state.keys()
        train([(ours, params), (theirs, torchs)], seed, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["SGD", "Lion"])
def test_a_counter_that_torch_has_not_is_kept_only_for_lookahead(kind, backend):
    """It leaves when Lookahead is switched off; switched on, Lookahead begins a whole cycle."""
    params = make_params(for_kind(SHAPES, kind))
    optimizer = CLASSES[kind][0](params, lr=0.1, lookahead_k=2, backend=backend)
    group = optimizer.param_groups[0]
    train([(optimizer, params)], 1, 3)
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}
    group[LOOKAHEAD_K] = 0
    train([(optimizer, params)], 2, 2)
    assert not any("step" in state for state in optimizer.state.values())
    group[LOOKAHEAD_K] = 4
    train([(optimizer, params)], 3, 3)
    before = [optimizer.state[p]["slow_weights"].clone() for p in params]
    apart = [p.detach() - slow for p, slow in zip(params, before, strict=True)]
    assert any(difference.any() for difference in apart)
    train([(optimizer, params)], 4, 1)
    assert_equal(params, [optimizer.state[p]["slow_weights"] for p in params])


@pytest.mark.parametrize("again", ["go on", "new plan", "copy", "eager"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dampened_buffer_begins_undampened_after_a_skipped_first_step(backend, again):
    params = make_params(SHAPES)
    torchs = clones(params)
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    optimizer = CLASSES["SGD"][0](params, backend=backend, **options)
    theirs = CLASSES["SGD"][1](torchs, **options)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    train([(optimizer, params)], 1, 1)  # skipped
    assert_equal(params, torchs)
    del optimizer.grad_scale, optimizer.found_inf
    if again == "new plan":
        optimizer.state[params[1]] = dict(optimizer.state[params[1]])
    if again == "copy":
        optimizer, params = copy.deepcopy((optimizer, params))
    if again == "eager":
        optimizer.backend = "eager"
    train([(optimizer, params), (theirs, torchs)], 2, 2)
    close(params, torchs)


def test_a_group_may_have_options_of_its_own():
    first, second, third, fourth = make_params([(3,)])
    groups = [{"params": [first]}, {"params": [second], "lookahead_k": 0, "ema_decay": None}]
    optimizer = CLASSES["AdamW"][0](groups, lookahead_k=2, ema_decay=0.5)
    optimizer.add_param_group({"params": [third], "lookahead_alpha": 0.25})
    assert [Options.of(group)[:3] for group in optimizer.param_groups] == [
        (2, 0.5, 0.5), (0, 0.5, None), (2, 0.25, 0.5),
    ]  # fmt: skip
    wrong = {"params": [fourth], "lookahead_k": -1}
    with pytest.raises(ValueError, match="Invalid lookahead_k -1"):
        optimizer.add_param_group(wrong)
    assert wrong == {"params": [fourth], "lookahead_k": -1}
    assert len(optimizer.param_groups) == 3
    plain = CLASSES["AdamW"][0]([{"params": [first]}, {"params": [second], "lookahead_k": 3}])
    assert [Options.of(group)[:3] for group in plain.param_groups] == [
        (0, 0.5, None),
        (3, 0.5, None),
    ]


@pytest.mark.parametrize("backend", KERNELS)
def test_a_parameter_cut_where_it_lies_is_noticed(backend):
    """Same address, fewer elements: the old sizes would reach past the new gradient."""
    params = [torch.ones(9000, 2).requires_grad_()]
    for kind, options in (("SGD", {"lr": 0.5}), ("SGD", {"lr": 0.5, "momentum": 0.9})):
        optimizer = CLASSES[kind][0](params, backend=backend, **options)
        train([(optimizer, params)], 1, 1)
        whole, params[0].data = params[0].data, params[0].data[:7]
        params[0].grad = torch.ones(7, 2)
        before = whole.clone()
        if "momentum" in options:
            with pytest.raises(ValueError, match=r"does not fit .* \(7, 2\)"):
                optimizer.step()
        else:
            optimizer.step()
            before[:7] -= 0.5
        assert torch.equal(whole, before)
        params[0].data = whole


@pytest.mark.cpu
def test_the_default_device_and_dtype_do_not_matter():
    params = make_params(SHAPES)
    torchs = clones(params)
    ours = CLASSES["AdamW"][0](params, lookahead_k=2, backend="cpu")
    theirs = CLASSES["AdamW"][1](torchs, foreach=False)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            for p, t in zip(params, torchs, strict=True):
                p.grad = t.grad = t.detach() + 1
            ours.step()
        theirs.step()
    finally:
        torch.set_default_dtype(torch.float32)
    close(params, torchs)
    assert ours.state[params[0]]["exp_avg"].dtype == torch.float32
    assert ours.state[params[0]]["step"].dtype == torch.float64  # Lookahead counts on it


@pytest.mark.parametrize("backend", KERNELS)
def test_a_state_that_does_not_fit_is_refused_before_a_kernel_sees_it(backend):
    params = make_params([(8,)])
    optimizer = CLASSES["AdamW"][0](params, backend=backend)
    train([(optimizer, params)], 1)
    optimizer.state[params[0]]["exp_avg"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"'exp_avg' of shape \(7,\) does not fit .* \(8,\)"):
        optimizer.step()


@pytest.mark.parametrize("backend", KERNELS)
def test_slow_weights_that_do_not_fit_are_refused_before_the_momentum_begins(backend):
    params = make_params([(8,)])
    optimizer = CLASSES["SGD"][0](params, lr=0.1, momentum=0.9, lookahead_k=2, backend=backend)
    optimizer.state[params[0]]["slow_weights"] = torch.zeros(7)
    params[0].grad = torch.ones(8)
    with pytest.raises(ValueError, match=r"'slow_weights' of shape \(7,\) does not fit"):
        optimizer.step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_momentum_switched_on_late_begins_undampened_like_torch(backend):
    params = make_params(SHAPES)
    torchs = clones(params)
    ours = CLASSES["SGD"][0](params, lr=0.1, dampening=0.5, backend=backend)
    theirs = CLASSES["SGD"][1](torchs, lr=0.1, dampening=0.5)
    train([(ours, params), (theirs, torchs)], 1)
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["momentum"] = 0.9
    train([(ours, params), (theirs, torchs)], 2)
    close(params, torchs)


def test_a_state_dict_survives_torch_save_with_weights_only():
    params = make_params(SHAPES, torch.bfloat16)
    optimizer = CLASSES["AdamW"][0](params, lookahead_k=2)
    train([(optimizer, params)], 1)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert Options.of(torch.load(file, weights_only=True)["param_groups"][0]).lookahead_k == 2


TAIL = {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 1.0}


@pytest.mark.cpu
@pytest.mark.parametrize("gpu_kernels", GPU_KERNELS)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_a_run_may_change_its_backend_at_every_checkpoint(variant, gpu_kernels):
    """`fused=false` to `true` and back: as a run on one backend; between kernels bit for bit."""
    kind, options = variant
    options = {**options, **TAIL}
    ends = {}
    for route in (["cpu"] * 4, ["cpu", gpu_kernels] * 2, ["eager", "cpu"] * 2,
                  [gpu_kernels, "eager"] * 2):  # fmt: skip
        torch.manual_seed(0)
        params = make_params(for_kind(SHAPES, kind))
        saved = None
        for i, backend in enumerate(route):
            optimizer = CLASSES[kind][0](params, backend=backend, **options)
            if saved is not None:
                optimizer.load_state_dict(saved)
            train([(optimizer, params)], i, 3)
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            saved = torch.load(file)
        held = [value for state in saved["state"].values() for value in state.values()]
        ends["-".join(route)] = [*params, *held]
    one, kernels, *eager = ends.values()
    assert_equal(kernels, one)
    for other in eager:
        close(other[: len(params)], one[: len(params)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop", "Lion"])
def test_a_checkpoint_that_lacks_newer_options_loads_as_in_torch(kind, backend):
    """Older versions of torch and of ours wrote fewer keys, and the step as a number."""
    params = make_params(for_kind(SHAPES, kind))
    momentum = {"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}
    optimizer = CLASSES[kind][0](params, lr=0.01, backend=backend, **momentum)
    train([(optimizer, params)], 1)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for key in ("foreach", "maximize", "capturable", "differentiable", "fused",
                    "decoupled_weight_decay"):  # fmt: skip
            if kind != "Lion" or "maximize" not in key:
                group.pop(key, None)
    for state in saved["state"].values():
        state["step"] = int(state.get("step", 3))
    twins = clones(params)
    twin = CLASSES[kind][0](twins, lr=0.01, backend=backend, **momentum)
    twin.load_state_dict(saved)
    train([(optimizer, params), (twin, twins)], 2)
    assert_equal(twins, params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CLASSES)
def test_the_state_dict_of_distributed_checkpoints_goes_both_ways(kind, backend):
    """By names of parameters; also into an optimizer that has no state yet."""
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.LayerNorm(5)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        CLASSES[kind][0](model.parameters(), lr=0.01, backend=backend, **TAIL) for model in models
    ]
    both = [(o, list(m.parameters())) for o, m in zip(optimizers, models, strict=True)]
    train(both[:1], 1)
    models[1].load_state_dict(models[0].state_dict())
    saved = copy.deepcopy(get_optimizer_state_dict(models[0], optimizers[0]))
    assert "0.weight" in saved["state"]
    set_optimizer_state_dict(models[1], optimizers[1], saved)
    train(both, 2)
    assert_equal(models[1].parameters(), models[0].parameters())
    for p, twin in zip(models[0].parameters(), models[1].parameters(), strict=True):
        states = optimizers[0].state[p], optimizers[1].state[twin]
        assert_equal(states[1].values(), states[0].values())


@pytest.mark.cpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_a_model_cast_in_mid_training_keeps_its_states(variant, backend):
    """`model.to(dtype)` leaves an optimizer's state alone; so does a resume of ours."""
    kind, options = variant
    options = torchs_options(kind, options, torch.bfloat16)
    params = make_params(for_kind(SHAPES, kind))
    optimizer = CLASSES[kind][0](params, backend=backend, **options, **TAIL)
    train([(optimizer, params)], 1)
    expected = [p.detach().clone() for p in params]
    reference = CLASSES[kind][0](
        [p.requires_grad_() for p in expected], backend="cpu", **options, **TAIL
    )
    reference.load_state_dict(optimizer.state_dict())
    for p in params:
        p.data = p.data.to(torch.bfloat16)
        p.grad = None
    for e, p in zip(expected, params, strict=True):
        e.data = p.detach().float()
    torch.manual_seed(2)
    for _ in range(3):
        grads = [g.bfloat16() for g in make_grads(expected)]
        set_grads(params, grads)
        set_grads(expected, [g.float() for g in grads])
        optimizer.step()
        reference.step()
        for e in expected:  # rounded once a step
            e.data = e.detach().bfloat16().float()
    for p, e in zip(params, expected, strict=True):
        state, wide = optimizer.state[p], reference.state[e]
        assert {v.dtype for name, v in state.items() if name != "step"} == {torch.float32}
        assert_within_ulps([p], [e.bfloat16()], [e.detach().double().abs().clamp_min(1.0)], 4)
        for key, value in wide.items():
            sizes = [value.detach().double().abs().clamp_min(1.0)]
            assert_within_ulps([state[key]], [value], sizes, 8)
    kept = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(kept)
    for p in params:
        assert optimizer.state[p]["slow_weights"].dtype == torch.float32
        assert optimizer.state[p]["ema_weights"].dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_that_leave_are_let_go(backend):
    """Taken from its group and its state, a parameter is freed by the next step."""
    params = make_params(SHAPES)
    optimizer = CLASSES["AdamW"][0](params, lookahead_k=2, backend=backend)
    train([(optimizer, params)], 1)
    gone = optimizer.param_groups[0]["params"].pop(2)
    del optimizer.state[gone]
    left = weakref.ref(gone)
    del params[2], gone
    train([(optimizer, params)], 2)
    assert left() is None
