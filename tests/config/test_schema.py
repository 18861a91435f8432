"""The contract's keys: what is accepted, and what one message says of everything else."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from spectramind_fused.config import build_optimizer
from spectramind_fused.config.check import ConfigError
from spectramind_fused.config.schema import parse_optimizer, read_scheduler
from spectramind_fused.optim import Options

CONFIGS = Path(__file__).parents[2] / "configs"


def shipped(name):
    config = OmegaConf.load(CONFIGS / "optimizer" / f"{name}.yaml")
    return OmegaConf.to_container(config, resolve=True)


def with_values(name="adamw", **values):
    config = shipped(name)
    config["optimizer"].update(values)
    return config


def problem_of(config):
    with pytest.raises(ConfigError) as error:
        parse_optimizer(config)
    return str(error.value)


SHIPPED = sorted(p.stem for p in (CONFIGS / "optimizer").glob("*.yaml") if p.stem != "lookahead")
# What every file exposes: section 2 of the contract. Hyperparameters come on top.
SCHEMA = {
    "name", "type", "lr", "auto_param_groups", "lookahead", "scheduler_hook", "warmup_steps",
    "clip_grad_norm", "accumulate_steps", "precision_safe", "bf16_preferred", "fused",
    "detect_anomaly", "log_config", "rich_console", "hash_to_debuglog", "export_json",
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_files_follow_the_contract(name):
    text = (CONFIGS / "optimizer" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert f"spectramind train optimizer={name}\n" in text
    assert shipped(name)["optimizer"].keys() >= SCHEMA
    parsed = parse_optimizer(shipped(name))
    assert parsed.name == name
    assert parsed.type.lower() == name
    assert parsed.export_json == f"outputs/diagnostics/optimizer_{name}.json"
    assert parsed.groups.enabled is (name in ("adamw", "lion", "muon", "nadam", "radam"))
    assert parsed.clip_grad_norm == 1.0
    assert parsed.lookahead_k == 0
    assert not parsed.fused


def test_the_root_the_section_and_dicts_of_either_mean_the_same():
    root = shipped("adamw")
    parsed = parse_optimizer(root)
    assert parse_optimizer(root["optimizer"]) == parsed
    assert parse_optimizer(OmegaConf.create(root)) == parsed
    assert parse_optimizer(OmegaConf.create(root).optimizer) == parsed


def test_optional_keys_have_defaults():
    parsed = parse_optimizer({"name": "sgd", "type": "SGD", "lr": 0.1, "momentum": 0.0})
    assert parsed.clip_grad_norm is None
    assert parsed.accumulate_steps == 1
    assert parsed.export_json is None


@pytest.mark.parametrize("name", SHIPPED)
def test_every_optimizer_can_be_the_base_of_lookahead(name):
    base = OmegaConf.load(CONFIGS / "base" / f"{name}.yaml")
    assert base.defaults == [f"/optimizer/{name}"]


DEFAULTS = {
    "adamw": {"lr": 3e-4, "weight_decay": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8,
              "amsgrad": False},
    "adam": {"lr": 3e-4, "weight_decay": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8,
             "amsgrad": False},
    "sgd": {"lr": 1e-2, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": True},
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_are_those_of_the_contract(name):
    parsed = parse_optimizer(shipped(name))
    assert {k: parsed.hyperparameters[k] for k in DEFAULTS[name]} == DEFAULTS[name]
    assert parsed.scheduler_hook
    assert parsed.precision_safe
    assert parsed.bf16_preferred


# Section 12 of the contract, word for word but for the first line (C1).
TEMPLATES = {
    "adamw": """
optimizer:
  name: "adamw"
  type: "AdamW"
  lr: 3.0e-4
  betas: [0.9, 0.999]
  eps: 1.0e-8
  weight_decay: 0.01
  amsgrad: false
  lookahead: {enabled: false, alpha: 0.5, k: 6}
  scheduler_hook: true
  warmup_steps: 0
  clip_grad_norm: 1.0
  accumulate_steps: 1
  precision_safe: true
  bf16_preferred: true
  fused: false
  detect_anomaly: false
  log_config: true
  rich_console: true
  hash_to_debuglog: true
  export_json: "outputs/diagnostics/optimizer_adamw.json"
""",
    "sgd": """
optimizer:
  name: "sgd"
  type: "SGD"
  lr: 1.0e-2
  momentum: 0.9
  dampening: 0.0
  weight_decay: 0.0
  nesterov: true
  lookahead: {enabled: false, alpha: 0.5, k: 6}
  scheduler_hook: true
  warmup_steps: 0
  clip_grad_norm: 1.0
  accumulate_steps: 1
  precision_safe: true
  bf16_preferred: true
  fused: false
  detect_anomaly: false
  log_config: true
  rich_console: true
  hash_to_debuglog: true
  export_json: "outputs/diagnostics/optimizer_sgd.json"
""",
}


BEYOND = ("ema_decay", "state_dtype", "master_weights", "stochastic_rounding")  # the contract


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_templates_of_the_contract_mean_what_our_files_mean(name):
    template = parse_optimizer(OmegaConf.create(TEMPLATES[name]))
    ours = parse_optimizer(shipped(name))
    for field in dataclasses.fields(template):
        if field.name not in ("groups", "node", "hyperparameters"):
            assert getattr(template, field.name) == getattr(ours, field.name), field.name
    assert template.hyperparameters == {
        k: v for k, v in ours.hyperparameters.items() if k not in BEYOND
    }


@pytest.mark.parametrize("off", [0, None, False])
def test_no_clipping_in_three_spellings(off):
    assert parse_optimizer(with_values(clip_grad_norm=off)).clip_grad_norm is None


def test_decoupled_makes_adam_adamw():
    assert parse_optimizer(with_values("adam", decoupled=True)).type == "AdamW"
    assert parse_optimizer(with_values("adam", decoupled=False)).type == "Adam"
    assert "contradicts type AdamW" in problem_of(with_values("adamw", decoupled=False))
    assert "cannot be true for SGD" in problem_of(with_values("sgd", decoupled=True))
    lion = {"name": "lion", "type": "Lion", "lr": 1e-4, "betas": [0.9, 0.99]}
    assert parse_optimizer({**lion, "decoupled": True}).type == "Lion"
    assert "cannot be false for Lion" in problem_of({**lion, "decoupled": False})


def test_notes_are_accepted():
    parse_optimizer(with_values(notes=["tried on Tuesday"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1}, "optimizer.learning_rate is no known key"),
        ({"weigth_decay": 1}, "did you mean 'weight_decay'?"),
        ({"lookahead": {"enabled": True, "kk": 3}}, "optimizer.lookahead.kk is no known key"),
        ({"lookahead": {"enabled": True, "k": 0}}, "k should be a whole number of at least 1"),
        ({"lookahead": {"alpha": 1.5}}, "alpha should be a number from 0 to 1, not 1.5"),
        ({"lookahead": True}, "optimizer.lookahead should hold keys and values, not True"),
        ({"lr": "fast"}, "optimizer.lr should be a number of at least 0, not 'fast'"),
        ({"lr": -1}, "optimizer.lr should be a number of at least 0, not -1"),
        ({"lr": True}, "optimizer.lr should be a number"),
        ({"lr": float("nan")}, "optimizer.lr should be a number"),
        ({"betas": [0.9]}, "betas should be two numbers"),
        ({"betas": [0.9, 1.0]}, "below 1"),
        ({"type": "Adamm"}, "SparseAdam, not 'Adamm': did you mean 'Adam'?"),
        ({"type": "os.system"}, "type should be one of"),
        ({"fused": "yes"}, "fused should be true or false, not 'yes'"),
        ({"accumulate_steps": 0}, "accumulate_steps should be a whole number of at least 1"),
        ({"warmup_steps": 1.5}, "warmup_steps should be a whole number"),
        ({"clip_grad_norm": -1}, "clip_grad_norm should be a number of at least 0"),
        ({"ema_decay": 1.5}, "ema_decay should be a number from 0 to 1"),
        ({"zero_grads": True}, "zero_grads is no known key"),
        ({"gradient_centralization": True}, "gradient_centralization is not implemented"),
        ({"adaptive_weight_decay": True}, "adaptive_weight_decay is not implemented"),
        ({"auto_param_groups": {"enabled": 1}}, "auto_param_groups.enabled should be true"),
        ({"auto_param_groups": {"no_decay_patterns": "ln"}}, "should be a list of texts"),
        ({"momentum": 0.9}, "optimizer.momentum is no known key"),
        ({"params": []}, "optimizer.params is no known key"),
        ({"type": "LBFGS"}, "LBFGS runs the model several times a step"),
        ({"type": "Lion", "amsgrad": False}, "optimizer.amsgrad is no known key"),
        ({"foreach": True, "fused": True}, "foreach means torch's own step and contradicts"),
        ({"differentiable": True}, "clip_grad_norm cannot be combined with differentiable"),
        ({"optimizer": {}}, "begin the YAML file with the line `# @package _global_`"),
        ({"backend": "cpu"}, "backend needs optimizer.fused=true"),
        ({"export_json": 3}, "export_json should be text"),
    ],
)
def test_each_mistake_is_named(values, message):
    assert message in problem_of(with_values(**values))


def test_nesterov_needs_momentum_and_no_dampening():
    for values in ({"momentum": 0.0}, {"dampening": 0.5}):
        assert "nesterov needs a momentum above 0" in problem_of(with_values("sgd", **values))


def test_required_keys_are_named():
    said = problem_of({"betas": [0.9, 0.99]})
    for key in ("name", "type", "lr"):
        assert f"optimizer.{key} is required" in said


def test_one_message_names_every_problem():
    said = problem_of(with_values(lr=-1, betas=3, fusedd=True, clip_grad_norm="much"))
    assert said.startswith("This config has problems:\n")
    assert said.count("\n  - ") == 4


def test_a_missing_value_is_a_config_error():
    config = OmegaConf.create(shipped("adamw"))
    config.optimizer.lr = "???"
    assert "lr" in problem_of(config)


def test_nothing_of_the_config_is_changed():
    config = shipped("adamw")
    before = copy.deepcopy(config)
    parse_optimizer(config)
    assert config == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "cosin"}, "name should be one of cosine, onecycle, none"),
        ({"name": "cosine", "warmup": 3}, "did you mean 'warmup_steps'"),
        ({"name": "cosine", "min_lr": -1}, "min_lr should be"),
    ],
)
def test_mistakes_of_the_scheduler_are_named(values, message):
    problems = []
    read_scheduler({"scheduler": values}, problems)
    assert message in problems[0]


def test_storage_options_reach_the_constructor():
    given = {"state_dtype": "int8", "ema_dtype": "bfloat16", "ema_decay": 0.9, "seed": 3}
    given |= {"stochastic_rounding": True, "low_precision_min_size": 64}
    parsed = parse_optimizer(with_values("adamw", **given))
    assert given.items() <= parsed.hyperparameters.items()
    model = torch.nn.Linear(64, 64)
    (group, *_) = build_optimizer(model, with_values("adamw", **given)).param_groups
    assert Options.of(group)[2:] == (0.9, "bfloat16", "int8", 64, None, True, 3)
    split = build_optimizer(model.bfloat16(), with_values("adamw", master_weights="split"))
    assert Options.of(split.param_groups[0]).master_weights == "split"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"state_dtype": "int4"}, "Invalid state_dtype 'int4'"),
        ({"seed": 1.5}, "optimizer.seed should be a whole number of at least 0"),
        ({"stochastic_rounding": "yes"}, "optimizer.stochastic_rounding should be true or false"),
    ],
)
def test_a_wrong_storage_option_is_named(values, words):
    assert words in problem_of(with_values("adamw", **values))


def test_masters_of_float32_parameters_are_refused_where_the_model_is_known():
    config = with_values("adamw", master_weights="split")
    with pytest.raises(ConfigError, match="is for parameters in bfloat16 or float16; these are"):
        build_optimizer(torch.nn.Linear(3, 3), config)


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("training", {"epochs": 2**31}, "training.epochs should be a whole number from 1 to"),
        ("training", {"seed": 2**63}, "training.seed should be a whole number from 0 to"),
        ("model", {"hidden": [10**6, 10**6]}, "makes weights and gradients of 8e+03 GB"),
        ("model", {"hidden": [True]}, "model.hidden should be a list of layer widths"),
        ("data", {"bins": 10**6}, "data.bins should be a whole number from 1 to 100000"),
        ("data", {"noise": float("inf")}, "data.noise should be a number of at least 0, not inf"),
        ("data", {"name": 2**20000}, "synthetic, not a number of thousands of digits"),
        ("model", {"hidden": [2**20000]}, "widths, not a number of thousands of digits"),
        ("optimizer", {"clip_grad_norm": 10**400}, "clip_grad_norm should be a number of at least"),
        ("training", {"resume": 300 * "x"}, "is no file: give the path of a checkpoint.pt"),
        ("data", {"noise": 10**400}, "data.noise should be a number of at least 0, not 1000"),
    ],
)
def test_numbers_have_bounds(section, change, said):
    pytest.importorskip("lightning_fabric")
    from spectramind_fused.config.compose import composed
    from spectramind_fused.config.packaged import packaged_configs
    from spectramind_fused.training.settings import parse_run

    (job,) = composed(packaged_configs(), "train", [])
    for key, value in change.items():
        job.config[section][key] = value
    with pytest.raises(ConfigError) as refused:
        parse_run(job.config)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 500
