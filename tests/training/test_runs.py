"""Whole runs through the command line: results, records, kill and resume."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.command_line import COLD, MODULE, spectramind

SMALL = ["train", "data=synthetic", "model.hidden=[16]", "training.batch_size=64"]
SMALL += ["scheduler.warmup_steps=5"]


def run_folder(folder):
    (found,) = Path(folder).glob("outputs/train/*/*")
    return found


def weights(path):
    content = torch.load(path, weights_only=True)
    return content["model"], content["optimizer"]["state"]


def assert_same_weights(a, b):
    (model_a, state_a), (model_b, state_b) = weights(a), weights(b)
    assert all(torch.equal(model_a[key], model_b[key]) for key in model_a)
    for index, state in state_a.items():
        assert all(torch.equal(state[key], state_b[index][key]) for key in state)


@pytest.mark.parametrize(
    "words",
    [
        [
            "optimizer=adamw",
            "optimizer.fused=true",
            "optimizer.lookahead.enabled=true",
            "optimizer.ema_decay=0.9",
        ],
        ["optimizer=sgd", "optimizer.accumulate_steps=3", "scheduler.name=onecycle"],
    ],
)
def test_a_killed_and_resumed_run_ends_bit_identical(tmp_path, words):
    words = [*SMALL, *words, "training.epochs=20", "training.checkpoint_every=1"]
    whole, killed, resumed = (tmp_path / name for name in ("whole", "killed", "resumed"))
    for folder in (whole, killed, resumed):
        folder.mkdir()
    assert spectramind(whole, *words).returncode == 0

    run = subprocess.Popen(
        [*MODULE, *words], cwd=killed, env=COLD, stdout=subprocess.PIPE, text=True
    )
    for line in run.stdout:
        if line.startswith("epoch   3/20"):
            break
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    checkpoint = run_folder(killed) / "checkpoint.pt"
    assert torch.load(checkpoint, weights_only=True)["epoch"] < 20

    again = spectramind(resumed, *words, f"training.resume={checkpoint}")
    assert again.returncode == 0, again.stderr
    assert_same_weights(run_folder(whole) / "checkpoint.pt", run_folder(resumed) / "checkpoint.pt")


def test_fused_may_be_switched_at_a_checkpoint(tmp_path):
    words = [*SMALL, "training.epochs=2", "training.checkpoint_every=1"]
    first = spectramind(tmp_path, *words, "optimizer.fused=false")
    assert first.returncode == 0
    checkpoint = run_folder(tmp_path) / "checkpoint.pt"
    checkpoint = checkpoint.rename(tmp_path / "checkpoint.pt")
    words[-2] = "training.epochs=3"
    second = spectramind(tmp_path, *words, "optimizer.fused=true", f"training.resume={checkpoint}")
    assert second.returncode == 0
    assert "epoch   3/3" in second.stdout
    assert "epoch   2/3" not in second.stdout
    assert "resumed with another training.epochs than before" in second.stderr


def test_what_a_run_leaves_behind(tmp_path):
    run = spectramind(
        tmp_path, *SMALL, "training.epochs=1", "optimizer=sgd", "optimizer.fused=true"
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    folder = run_folder(tmp_path)
    assert {p.name for p in folder.iterdir()} >= {
        "checkpoint.pt", "optimizer.json", "result.json", "predictions.png", ".hydra",
    }  # fmt: skip
    record = json.loads((folder / "optimizer.json").read_text())
    exported = tmp_path / "outputs" / "diagnostics" / "optimizer_sgd.json"
    assert json.loads(exported.read_text()) == record
    assert record["optimizer"]["momentum"] == 0.9
    assert record["backend"] == {"cpu": "cpu"}
    assert record["param_groups"][0]["lr"] == 0.01
    assert len(record["config_hash"]) == len(record["run_hash"]) == 64
    assert record["overrides"][-1] == "optimizer.fused=true"
    log = (tmp_path / "logs" / "v50_debug_log.md").read_text()
    assert f"\t• config hash: {record['config_hash'][:12]}\n" in log
    assert f"\t• run folder: {folder}\n" in log
    for shown in ("FusedSGD", "backend on cpu", record["config_hash"][:12], "is ours",
                  "mean and std", "interpolation", "this run", "SYNTHETIC"):  # fmt: skip
        assert shown in run.stdout
    score = json.loads((folder / "result.json").read_text())["val/gll"]
    assert f"{score:.3f}" in run.stdout


def test_records_can_be_switched_off(tmp_path):
    off = ["log_config", "rich_console", "hash_to_debuglog"]
    words = [f"optimizer.{key}=false" for key in off]
    run = spectramind(tmp_path, *SMALL, "training.epochs=1", *words)
    assert run.returncode == 0, run.stderr
    assert "FusedAdamW" not in run.stdout
    assert not (tmp_path / "logs").exists()
    assert not (tmp_path / "outputs" / "diagnostics").exists()


def test_precision_follows_the_contract(tmp_path):
    run = spectramind(tmp_path, *SMALL, "training.epochs=1", "training.precision=bf16")
    assert run.returncode == 0, run.stderr
    assert "bf16-mixed" in run.stdout
    refused = spectramind(
        tmp_path, *SMALL, "training.precision=bf16", "optimizer.precision_safe=false"
    )
    assert refused.returncode == 2
    assert "contradicts optimizer.precision_safe=false" in refused.stderr


@pytest.mark.parametrize("damage", ["absent", "text", "cut", "other optimizer", "other model"])
def test_a_checkpoint_that_cannot_be_used_is_one_sentence(tmp_path, damage):
    words = [*SMALL, "training.epochs=1"]
    path = tmp_path / "checkpoint.pt"
    if damage == "text":
        path.write_text("no checkpoint")
    elif damage != "absent":
        assert spectramind(tmp_path, *words).returncode == 0
        (run_folder(tmp_path) / "checkpoint.pt").rename(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    if damage == "other optimizer":
        words.append("optimizer=sgd")
    if damage == "other model":
        words[2] = "model.hidden=[17]"
    run = spectramind(tmp_path, *words, f"training.resume={path}")
    assert run.returncode == 2
    assert f"training.resume={path}" in run.stderr
    assert "Traceback" not in run.stderr
    assert "epoch " not in run.stdout
