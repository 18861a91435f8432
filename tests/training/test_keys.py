"""Every control key of the contract has an effect on a run."""

import csv
import json
import re

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from spectramind_fused.config.compose import composed
from spectramind_fused.config.packaged import packaged_configs
from spectramind_fused.training import loop
from spectramind_fused.training.settings import parse_run

SMALL = ["data=synthetic", "model.hidden=[8]", "training.epochs=1", "scheduler.warmup_steps=5"]


def config(*words):
    (job,) = composed(packaged_configs(), "train", [*SMALL, *words])
    return job.config


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains in an empty folder; returns the run's folder."""
    monkeypatch.chdir(tmp_path)

    def train(*words, name="run"):
        folder = tmp_path / name
        folder.mkdir()
        loop.train(config(*words), folder, list(words))
        return folder

    return train


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def rates(folder):
    with (folder / "history.csv").open(newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


def test_accumulated_batches_are_one_larger_batch(run):
    parts = run("training.batch_size=32", "optimizer.accumulate_steps=2", name="parts")
    whole = run("training.batch_size=64", name="whole")
    parts, whole = weights(parts), weights(whole)
    assert parts["optimizer"]["state"][0]["step"] == whole["optimizer"]["state"][0]["step"] == 20
    for key, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("detect", [True, False])
def test_detect_anomaly_names_the_operation_that_made_a_nan(detect):
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, inputs):
            mean = (self.weight * inputs).sqrt()
            return mean, torch.ones_like(mean) + 0 * mean

    fabric = Fabric(accelerator="cpu", devices=1)
    model = fabric.setup(Bad(), torch.optim.SGD([torch.zeros(1, requires_grad=True)]))[0]
    window = [(torch.zeros(2, 3), torch.zeros(2, 3))]
    if detect:
        with (
            pytest.warns(UserWarning, match="Anomaly|forward call"),
            pytest.raises(RuntimeError, match="returned nan values"),
        ):
            loop._backward(fabric, model, window, True)
    else:
        assert loop._backward(fabric, model, window, False).isfinite()


@pytest.mark.parametrize(
    ("words", "cuda", "expected"),
    [
        ([], False, "32"),
        ([], True, "bf16"),
        (["optimizer.bf16_preferred=false"], True, "32"),
        (["optimizer.precision_safe=false"], True, "32"),
        (["training.accelerator=cpu"], True, "32"),
        (["training.precision=fp16"], True, "fp16"),
        (["training.precision=bf16"], False, "bf16"),
    ],
)
def test_precision_hints_decide_where_the_trainer_is_left_to_choose(
    words, cuda, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert loop.precision(parse_run(config(*words))) == expected


@pytest.mark.parametrize("key", ["log_config", "rich_console", "hash_to_debuglog"])
def test_each_sink_has_its_own_switch(key, run, tmp_path, capsys):
    folder = run(f"optimizer.{key}=false")
    assert (folder / "optimizer.json").exists() is (key != "log_config")
    assert (tmp_path / "outputs" / "diagnostics").exists() is (key != "log_config")
    assert ("weight decay of each tensor" in capsys.readouterr().out) is (key != "rich_console")
    assert (tmp_path / "logs" / "v50_debug_log.md").exists() is (key != "hash_to_debuglog")


def test_export_json_says_where_and_null_nowhere(run, tmp_path):
    run("optimizer.export_json=elsewhere/a.json", name="a")
    record = json.loads((tmp_path / "elsewhere" / "a.json").read_text())
    assert record["optimizer"]["precision_safe"] is record["optimizer"]["bf16_preferred"] is True
    folder = run("optimizer.export_json=null", name="b")
    assert (folder / "optimizer.json").exists()
    assert not (tmp_path / "outputs").exists()


def test_name_labels_and_notes_are_kept(run, tmp_path):
    folder = run("optimizer.name=mine", "+optimizer.notes=[a, b]")
    record = json.loads((folder / "optimizer.json").read_text())
    assert record["optimizer"]["notes"] == ["a", "b"]
    assert "\t• optimizer: mine (AdamW)\n" in (tmp_path / "logs" / "v50_debug_log.md").read_text()


def test_the_schedule_moves_lr_only_where_it_may_attach(run, capsys):
    moved = rates(run("training.epochs=3", name="hook"))
    assert len(set(moved)) == 3
    assert "cosine, 5 warm-up steps" in capsys.readouterr().out
    for words in (["optimizer.scheduler_hook=false"], ["scheduler.name=none"]):
        still = rates(run("training.epochs=3", *words, name=words[0]))
        assert set(still) == {3e-4}
        assert re.search(r"│ scheduler +│ none", capsys.readouterr().out)


def test_groups_lookahead_clip_and_average_are_recorded_as_built(run):
    words = ["optimizer.lookahead.enabled=true", "optimizer.lookahead.k=3"]
    folder = run(*words, "optimizer.ema_decay=0.9", "optimizer.clip_grad_norm=0.5")
    record = json.loads((folder / "optimizer.json").read_text())
    decay, exempt = record["param_groups"]
    assert (decay["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)
    assert decay["lookahead_k"] == 3
    assert decay["ema_decay"] == 0.9
    assert record["assignments"]["layers.1.weight"] == {
        "decays": False, "why": "in a LayerNorm", "parameters": 8,
    }  # fmt: skip
    state = weights(folder)["optimizer"]["state"][0]
    assert {"slow_weights", "ema_weights"} <= state.keys()


def test_sigmas_are_judged_by_what_a_gaussian_would_cover(run):
    folder = run()
    calibration = json.loads((folder / "result.json").read_text())["calibration"]
    assert 0 < calibration["within 1 sigma"] < calibration["within 2 sigma"] <= 1
    from spectramind_fused.training.model import calibration as judge

    target = torch.randn(1000, 50, generator=torch.Generator().manual_seed(0))
    honest = judge(torch.zeros(()), torch.ones(()), target)
    assert honest["within 1 sigma"] == pytest.approx(0.683, abs=0.01)
    assert honest["within 2 sigma"] == pytest.approx(0.954, abs=0.01)
    assert honest["rms of error / sigma"] == pytest.approx(1, abs=0.01)
