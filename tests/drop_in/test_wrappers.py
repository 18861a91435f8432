"""Wrappers of other libraries, around ours and around torch's: they must not tell them apart."""

import copy
import importlib.util
from pathlib import Path

import pytest
import pytorch_optimizer
import torch
from torch.optim.swa_utils import SWALR, AveragedModel

from spectramind_fused.optim import Options
from tests.asserts import assert_equal, close
from tests.backends import BACKENDS
from tests.inputs import clones, make_grads, make_params, set_grads
from tests.oracle import CLASSES

SHAPES = [(1,), (17,), (1025,)]
KINDS = {
    "AdamW": {"lr": 0.01},
    "Adam": {"lr": 0.01, "weight_decay": 0.1},
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    "RMSprop": {"lr": 0.01, "centered": True, "momentum": 0.5},
}


def timms_lookahead(*arguments, **options):
    """timm's own class, by its path: the package imports torchvision."""
    package = Path(importlib.util.find_spec("timm").origin).parent
    spec = importlib.util.spec_from_file_location("lookahead", package / "optim/lookahead.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Lookahead(*arguments, **options)


def trained(optimizer, params, first, last):
    for step in range(first, last):
        torch.manual_seed(step)
        set_grads(params, make_grads(params))
        optimizer.step()


def both(kind, backend, wrap):
    """A wrapper around ours and one around torch's, over equal parameters."""
    torch.manual_seed(0)
    params = make_params(SHAPES)
    torchs = clones(params)
    ours, theirs = CLASSES[kind]
    return [
        (wrap(ours(params, backend=backend, **KINDS[kind])), params),
        (wrap(theirs(torchs, **KINDS[kind])), torchs),
    ]


def same_layout(state_dict, other):
    """The same entries, whatever they hold."""
    assert state_dict.keys() == other.keys()
    for key, value in other.items():
        if isinstance(value, dict):
            same_layout(state_dict[key], value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for mine, theirs in zip(state_dict[key], value, strict=True):
                same_layout(mine, theirs)


@pytest.mark.parametrize("saved_after", [2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_timms_lookahead(kind, backend, saved_after):
    def wrap(optimizer):
        return timms_lookahead(optimizer, alpha=0.3, k=3)

    (ours, params), (theirs, torchs) = both(kind, backend, wrap)
    for optimizer, mine in ((ours, params), (theirs, torchs)):
        trained(optimizer, mine, 0, saved_after)
    same_layout(ours.state_dict(), theirs.state_dict())
    close(params, torchs)
    for saved in (ours.state_dict(), theirs.state_dict()):
        pairs = both(kind, backend, wrap)
        for optimizer, mine in pairs:
            optimizer.load_state_dict(copy.deepcopy(saved))
            for p, q in zip(mine, torchs, strict=True):
                p.data.copy_(q.data)
            trained(optimizer, mine, saved_after, 8)
        (_, params), (_, expected) = pairs
        close(params, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_timms_lookahead_goes_on_with_ours(kind, backend):
    (_, params), (theirs, torchs) = both(
        kind, backend, lambda optimizer: timms_lookahead(optimizer, alpha=0.3, k=3)
    )
    trained(theirs, torchs, 0, 4)
    ours = CLASSES[kind][0](params, lookahead_k=5, backend=backend, **KINDS[kind])
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert Options.of(ours.param_groups[0])[:3] == (3, 0.3, None)
    for p, q in zip(params, torchs, strict=True):
        p.data.copy_(q.data)
    for optimizer, mine in ((ours, params), (theirs, torchs)):
        trained(optimizer, mine, 4, 11)
    close(params, torchs)
    assert not [key for key in ours.param_groups[0] if key.startswith("lookahead")]
    assert "lookahead_slow_buff" not in ours.state[params[0]]


@pytest.mark.parametrize("why", ["before a parameter's first sync", "a lookahead_k", "it counts 4"])
def test_a_checkpoint_of_timms_lookahead_is_refused_where_ours_would_not_go_on_alike(why):
    torchs = make_params(SHAPES)
    theirs = timms_lookahead(torch.optim.AdamW(torchs), alpha=0.3, k=3)
    trained(theirs, torchs, 0, 2 if "sync" in why else 4)
    saved = theirs.state_dict()
    if "counts" in why:
        saved["state"][1]["step"] += 1
    params = clones(torchs)
    ours = CLASSES["AdamW"][0](params, lookahead_k=0 if "k" in why else 3)
    trained(ours, params, 0, 1)
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=f"of timm's Lookahead: load it through .*{why}"):
        ours.load_state_dict(saved)
    after = ours.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, state in before["state"].items():
        assert_equal(after["state"][index].values(), state.values())


def training(wrapper):
    wrapper.train()
    return wrapper


WRAPPERS = {
    "Lookahead": lambda o: pytorch_optimizer.Lookahead(o, k=2),
    "Lookahead, reset": lambda o: pytorch_optimizer.Lookahead(o, k=2, pullback_momentum="reset"),
    "Lookahead, back": lambda o: pytorch_optimizer.Lookahead(o, k=2, pullback_momentum="pullback"),
    "OrthoGrad": pytorch_optimizer.OrthoGrad,
    "ScheduleFree": lambda o: training(pytorch_optimizer.ScheduleFreeWrapper(o)),
    "TRAC": pytorch_optimizer.TRAC,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_pytorch_optimizer(name, kind, backend):
    pairs = both(kind, backend, WRAPPERS[name])
    for optimizer, mine in pairs:
        trained(optimizer, mine, 0, 3)
    (ours, params), (theirs, torchs) = pairs
    close(params, torchs)
    if name in ("ScheduleFree", "TRAC"):  # do not load what they save
        return
    saved = theirs.state_dict()
    same_layout(ours.state_dict(), saved)
    pairs = both(kind, backend, WRAPPERS[name])
    for optimizer, mine in pairs:
        optimizer.load_state_dict(copy.deepcopy(saved))
        trained(optimizer, mine, 3, 6)
    close(pairs[0][1], pairs[1][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_stochastic_weight_averaging(backend):
    """torch's AveragedModel and SWALR, whose `swa_lr` stands in the groups."""
    ends = []
    for cls, options in zip(CLASSES["SGD"], [{"backend": backend}, {}], strict=True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 1))
        optimizer = cls(model.parameters(), lr=0.1, momentum=0.9, **options)
        averaged, schedule = AveragedModel(model), SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(3, 7)).square().mean().backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
        ends.append([*model.parameters(), *averaged.module.parameters()])
        same_layout(optimizer.state_dict()["param_groups"][0], {
            **torch.optim.SGD([torch.zeros(1)], lr=0.1).state_dict()["param_groups"][0],
            "swa_lr": 0.05, "initial_lr": 0.1,
        })  # fmt: skip
    close(*ends)
