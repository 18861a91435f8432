"""One run in several processes: the same loss, the same records, one voice."""

import csv
import json
import sys

import pytest
import torch

from spectramind_fused.config.check import Section
from spectramind_fused.training.settings import _check_spread
from tests.command_line import MODULE, cold, spectramind
from tests.training.test_runs import SMALL, run_folder

# --standalone: a port of its own, for the tests themselves run side by side.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
DEFAULT = ["train", "optimizer.fused=true", "training.epochs=3", "training.checkpoint_every=1"]


def under_torchrun(folder, *words):
    return cold(folder, *TORCHRUN, "-m", "spectramind_fused", *words)


def epochs(run):
    return [line for line in run.stdout.splitlines() if line.startswith("epoch")]


def logged_steps(folder):
    """Of each optimizer step that a csv logger was given, its loss and norm."""
    with (folder / "log" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    steps = {row["step"]: (float(row["train/loss"]), float(row["grad/norm"])) for row in rows}
    assert len(steps) == len(rows)  # each once
    return steps


@pytest.mark.parametrize("started_by", ["fabric", "torchrun"])
def test_two_processes_train_the_default_task_to_the_loss_of_one(started_by, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    alone = spectramind(one, *DEFAULT, "logger=csv")
    if started_by == "fabric":
        together = cold(two, *MODULE, *DEFAULT, "logger=csv", "training.devices=2")
    else:
        together = under_torchrun(two, *DEFAULT, "logger=csv")
    assert together.returncode == 0, together.stderr
    assert len(epochs(together)) == 3
    assert "on 2 processes, 32-true" in together.stdout
    assert "Warning" not in together.stderr  # of DDP's, about what no user has chosen
    results = [json.loads((run_folder(f) / "result.json").read_text()) for f in (one, two)]
    assert results[1]["val/gll"] == pytest.approx(results[0]["val/gll"], abs=1e-3)
    for mine, theirs in zip(epochs(together), epochs(alone), strict=True):
        (loss, other) = (float(line.split("train/gll")[1].split()[0]) for line in (mine, theirs))
        assert loss == pytest.approx(other, abs=2e-3)
    log = (two / "logs" / "v50_debug_log.md").read_text()
    assert log.count("— spectramind train\n") == 1

    steps = [logged_steps(run_folder(folder)) for folder in (one, two)]
    assert [list(each) for each in steps] == [[*map(str, range(1, 3 * 82 + 1))]] * 2
    for mine, theirs in zip(*(list(each.values())[:20] for each in steps), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)

    # What two processes saved goes on in one.
    checkpoint = run_folder(two) / "checkpoint.pt"
    again = tmp_path / "again"
    again.mkdir()
    resumed = spectramind(again, *DEFAULT[:2], "training.epochs=4", f"training.resume={checkpoint}")
    assert resumed.returncode == 0, resumed.stderr
    assert len(epochs(resumed)) == 1


def test_what_is_wrong_is_said_once(tmp_path):
    together = under_torchrun(tmp_path, *SMALL, "optimizer.lrr=1")
    assert together.returncode != 0
    assert together.stderr.count("optimizer.lrr is no known key: did you mean 'lr'?") == 1
    sweep = under_torchrun(tmp_path, *SMALL, "-m", "optimizer=adam,sgd")
    assert sweep.returncode != 0
    assert sweep.stderr.count("sweep with training.devices=N instead") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    run = spectramind(tmp_path, *SMALL, "training.devices=3")
    assert run.returncode == 2
    assert "batch_size is 64, of which 3 processes get equal parts: give a multip" in run.stderr
    run = under_torchrun(tmp_path, *SMALL, "training.devices=4")
    assert "training.devices is 4, but torchrun has started 2 processes" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for devices, accelerator, refused in ((2, "auto", False), (4, "auto", True), (4, "cpu", False)):
        problems = []
        _check_spread(Section("training", {}, problems), accelerator, devices, 16)
        assert bool(problems) == refused
    _check_spread(Section("training", {}, problems), "cuda", 4, 16)
    assert problems == [
        "training.devices is 4, but 2 GPUs were found: training.accelerator=cpu takes any number."
    ]


def test_what_a_process_refuses_is_one_sentence(tmp_path):
    """Only there the checkpoint is compared with the run."""
    first = spectramind(tmp_path, *SMALL, "training.epochs=1", "training.checkpoint_every=1")
    assert first.returncode == 0, first.stderr
    checkpoint = run_folder(tmp_path) / "checkpoint.pt"
    words = [*SMALL, "optimizer=sgd", f"training.resume={checkpoint}", "training.devices=2"]
    run = cold(tmp_path, *MODULE, *words)
    assert run.returncode == 2
    assert "does not fit this run: This checkpoint is of another optimizer" in run.stderr
    assert "Traceback" not in run.stderr
