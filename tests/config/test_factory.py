"""build_optimizer and build_scheduler: the config's words, torch's objects."""

import inspect
import math

import pytest
import torch
from torch import nn

from spectramind_fused import (
    FusedAdam,
    FusedAdamW,
    FusedLion,
    FusedMuon,
    FusedRMSprop,
    FusedSGD,
    build_optimizer,
    build_scheduler,
)
from spectramind_fused.config import ConfigError
from spectramind_fused.config.groups import assign
from spectramind_fused.config.schema import parse_optimizer
from spectramind_fused.optim import Options, unfused
from tests.config.test_schema import shipped, with_values

CLASSES = {
    "adam": FusedAdam,
    "adamw": FusedAdamW,
    "sgd": FusedSGD,
    "rmsprop": FusedRMSprop,
    "lion": FusedLion,
}


def model():
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_fused_switches_the_backend_and_nothing_else(name, fused):
    optimizer = build_optimizer(model(), with_values(name, fused=fused))
    assert type(optimizer) is CLASSES[name]
    assert optimizer.backends()["cpu"].startswith("cpu" if fused else "eager")


@pytest.mark.parametrize("name", unfused.NAMES)
def test_every_class_of_torch_is_built_by_type_alone(name):
    node = {"name": "any", "type": name, "lr": 1e-3, "clip_grad_norm": 1.0}
    node["lookahead"] = {"enabled": True, "k": 2, "alpha": 0.5}
    decays = "weight_decay" in inspect.signature(getattr(torch.optim, name)).parameters
    node["auto_param_groups"] = {"enabled": decays}
    net = model()
    optimizer = build_optimizer(net, node)
    assert isinstance(optimizer, getattr(torch.optim, name))
    assert len(optimizer.param_groups) == 1 + decays
    assert optimizer.clip_grad_norm == 1.0
    if name != "SparseAdam":
        net(torch.randn(3, 4)).square().mean().backward()
        before = net[0].weight.detach().clone()
        optimizer.step()
        assert not torch.equal(net[0].weight, before)
        assert "slow_weights" in optimizer.state[net[0].weight]


def test_what_the_model_does_not_allow_is_one_sentence():
    node = {"name": "sparse", "type": "SparseAdam", "lr": 1e-3}
    net = nn.Linear(2, 2)
    net.weight = nn.Parameter(torch.zeros(2, 2).to_sparse())
    with pytest.raises(ConfigError, match=r"optimizer: .*SparseAdam requires dense parameter"):
        build_optimizer(net, node)


class Language(nn.Module):
    """A table of words, two matrices, and what makes the output."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 10)


def test_muon_steps_matrices_and_adamw_the_rest():
    node = {"name": "muon", "type": "Muon", "lr": 0.02, "weight_decay": 0.1, "fused": True}
    node["auto_param_groups"] = {"enabled": True}
    node["adamw"] = {"lr": 1e-3, "betas": [0.8, 0.9], "weight_decay": 0.3}
    net = Language()
    optimizer = build_optimizer(net, node)
    assert type(optimizer) is FusedMuon
    found = [
        (set(g["param_names"]), g.get("use_muon", True), g["lr"], g["weight_decay"])
        for g in optimizer.param_groups
    ]
    vectors = {"layers.0.bias", "layers.1.weight", "layers.1.bias", "layers.2.bias", "head.bias"}
    assert found == [
        ({"layers.0.weight", "layers.2.weight"}, True, 0.02, 0.1),
        ({"words.weight", "head.weight"}, False, 1e-3, 0.3),
        (vectors, False, 1e-3, 0.0),
    ]
    assert optimizer.param_groups[1]["betas"] == (0.8, 0.9)
    whys = {a.name: a.why_adamw for a in assign(net, *_of(node))}
    assert whys["words.weight"] == "of an embedding"
    assert whys["head.weight"] == "pattern 'head'"
    assert whys["head.bias"] == "1 dimension"
    assert whys["layers.0.weight"] == ""


def _of(node):
    parsed = parse_optimizer(node)
    return parsed.groups, parsed.adamw


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"adamw": {"learning_rate": 1.0}}, r"adamw\.learning_rate is no known key"),
        ({"adamw": {"betas": [2, 3]}}, r"adamw\.betas should be two numbers"),
        ({"adamw": {"patterns": "head"}}, r"adamw\.patterns should be a list of texts"),
        ({"type": "AdamW", "betas": [0.9, 0.99], "adamw": {}}, "adamw is for type Muon"),
        ({"ns_coefficients": "polar"}, "give three numbers, or 'polar_express'"),
        ({"split_sizes": [1]}, "split_sizes is no known key"),
    ],
)
def test_what_is_wrong_beside_muon_is_said(change, match):
    with pytest.raises(ConfigError, match=match):
        parse_optimizer({"name": "muon", "type": "Muon", "lr": 0.02, **change})


def test_a_pattern_of_the_users_that_no_matrix_has_is_told():
    node = {"name": "muon", "type": "Muon", "lr": 0.02, "adamw": {"patterns": ["lm_tail"]}}
    with pytest.warns(UserWarning, match=r"optimizer\.adamw\.patterns: 'lm_tail' matched no"):
        build_optimizer(model(), node)


def test_fused_without_kernels_warns_and_names_the_class():
    node = {"name": "sparse", "type": "SparseAdam", "lr": 1e-3, "fused": True}
    with pytest.warns(UserWarning, match=r"no kernels serve cpu: torch \(SparseAdam has"):
        build_optimizer(model(), node)


def test_a_schedule_that_has_nothing_to_cycle_says_so():
    config = {"optimizer": {"name": "r", "type": "Rprop", "lr": 1e-3}}
    config["scheduler"] = {"name": "onecycle", "cycle_momentum": True}
    with pytest.raises(ConfigError, match=r"scheduler\.cycle_momentum=true: "):
        build_scheduler(build_optimizer(model(), config), config, 10)
    config["scheduler"]["cycle_momentum"] = None
    build_scheduler(build_optimizer(model(), config), config, 10)


def test_every_value_arrives():
    lookahead = {"enabled": True, "alpha": 0.3, "k": 4}
    config = with_values(lr=0.5, betas=[0.8, 0.9], eps=1e-4, weight_decay=0.2, amsgrad=True)
    config["optimizer"] |= {"lookahead": lookahead, "maximize": True}
    decay, exempt = build_optimizer(model(), config).param_groups
    for group, weight_decay in ((decay, 0.2), (exempt, 0.0)):
        expected = {"lr": 0.5, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": weight_decay}
        expected |= {"amsgrad": True, "maximize": True}
        assert expected.items() <= group.items()
        assert Options.of(group)[:3] == (4, 0.3, None)
    assert decay["param_names"] == ["0.weight", "2.weight"]


@pytest.mark.parametrize("fused", [False, True])
def test_the_clip_and_the_average_are_the_steps_own(fused):
    config = with_values(fused=fused, clip_grad_norm=0.25, ema_decay=0.99)
    optimizer = build_optimizer(model(), config)
    assert optimizer.clip_grad_norm == 0.25
    assert {Options.of(group).ema_decay for group in optimizer.param_groups} == {0.99}
    optimizer = build_optimizer(model(), with_values(fused=fused, clip_grad_norm=0))
    assert optimizer.clip_grad_norm is None
    assert {Options.of(group).ema_decay for group in optimizer.param_groups} == {None}


def test_lookahead_that_is_not_enabled_is_off():
    optimizer = build_optimizer(model(), shipped("sgd"))
    assert Options.of(optimizer.param_groups[0]).lookahead_k == 0


def test_where_no_kernels_run_fused_warns_and_says_why():
    meta = model().to("meta")
    with pytest.warns(UserWarning, match=r"fused=true, but no kernels serve meta: torch \(.*meta"):
        build_optimizer(meta, with_values(fused=True))


def test_what_only_the_class_can_know_is_a_config_error_too():
    with pytest.raises(ConfigError, match="Unknown backend 'cuba'"):
        build_optimizer(model(), with_values(fused=True, backend="cuba"))
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build_optimizer(model().requires_grad_(False), shipped("sgd"))


def lrs(config, total, steps=None):
    optimizer = build_optimizer(model(), config)
    scheduler = build_scheduler(optimizer, config, total)
    rates = []
    for _ in range(steps or total):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def with_schedule(base="adamw", /, **schedule):
    return {**with_values(base, lr=0.1), "scheduler": schedule}


def test_cosine_rises_linearly_and_falls_to_min_lr():
    config = with_schedule(name="cosine", warmup_steps=5, min_lr=0.01)
    rates = [r[0] for r in lrs(config, 25, 26)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    fall = [0.01 + 0.09 * (1 + math.cos(math.pi * t / 20)) / 2 for t in range(21)]
    assert rates[5:] == pytest.approx(fall)
    assert rates[25] == pytest.approx(0.01)


@pytest.mark.parametrize("warmup", [0, 1])
def test_cosine_without_warmup_begins_at_lr(warmup):
    rates = lrs(with_schedule(name="cosine", warmup_steps=warmup, min_lr=0.0), 10)
    assert rates[0][0] == pytest.approx(0.1)
    assert rates[5][0] < 0.07


def test_each_group_falls_from_its_own_lr():
    config = with_schedule(name="cosine", warmup_steps=0, min_lr=0.01)
    optimizer = build_optimizer(model(), config)
    optimizer.param_groups[1]["lr"] = 0.5
    scheduler = build_scheduler(optimizer, config, 10)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.01, 0.01])
    assert scheduler.base_lrs == [0.1, 0.5]


def test_the_optimizers_hint_holds_where_the_schedule_is_silent():
    config = with_schedule(name="cosine", warmup_steps=None, min_lr=0.0)
    config["optimizer"]["warmup_steps"] = 4
    assert lrs(config, 20)[0][0] == pytest.approx(0.025)
    config["scheduler"]["warmup_steps"] = 2
    assert lrs(config, 20)[0][0] == pytest.approx(0.05)


def test_a_warmup_longer_than_the_run_is_cut_with_a_warning():
    config = with_schedule(name="cosine", warmup_steps=500, min_lr=0.0)
    with pytest.warns(UserWarning, match="warmup_steps=500 is longer than the run of 10 steps"):
        rates = lrs(config, 10)
    assert rates[-1][0] == pytest.approx(0.1)


def test_onecycle_peaks_at_lr_after_the_warmup():
    config = with_schedule("sgd", name="onecycle", warmup_steps=5, min_lr=1e-4)
    optimizer = build_optimizer(model(), config)
    scheduler = build_scheduler(optimizer, config, 20)
    seen = []
    for _ in range(20):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        scheduler.step()
    rates, momenta = zip(*seen, strict=True)
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) == 4
    assert rates[-1] == pytest.approx(1e-4)
    assert min(momenta) == pytest.approx(0.85)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_onecycle_rises_over_any_part_of_a_run(steps):
    """Torch divides by zero where it rises for one step, or to the end."""
    for warmup in range(1, steps + 1):
        config = with_schedule("sgd", name="onecycle", warmup_steps=warmup)
        rates = [lr for lr, *_ in lrs(config, steps)]
        assert rates.index(max(rates)) == warmup - 1
        assert max(rates) == pytest.approx(0.1)


@pytest.mark.parametrize(("asked", "cycled"), [(None, False), (True, True)])
def test_onecycle_leaves_adams_betas_alone_unless_asked(asked, cycled):
    config = with_schedule(name="onecycle", warmup_steps=5, cycle_momentum=asked)
    optimizer = build_optimizer(model(), config)
    scheduler = build_scheduler(optimizer, config, 20)
    optimizer.step()
    scheduler.step()
    assert (optimizer.param_groups[0]["betas"][0] != 0.9) is cycled


@pytest.mark.parametrize(
    ("hook", "schedule"), [(False, {"name": "cosine"}), (True, {"name": "none"}), (True, None)]
)
def test_no_scheduler(hook, schedule):
    config = with_values(scheduler_hook=hook)
    if schedule is not None:
        config["scheduler"] = schedule
    assert build_scheduler(build_optimizer(model(), config), config, 10) is None
