"""Ctrl-C, SIGTERM and a second run in the same folder."""

import signal

import pytest
import torch

from tests.command_line import refused, spectramind, started
from tests.training.test_runs import SMALL, assert_same_weights

LONG = [*SMALL, "training.epochs=1000", "scheduler.name=none", "hydra.run.dir=run"]


def until(run, start):
    """Waits for a line of a run's output."""
    assert any(line.startswith(start) for line in run.stdout), run.stderr.read()


def ended(run, signum):
    """Sends a signal; returns what the run then said."""
    run.send_signal(signum)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + signum, said
    return said


@pytest.mark.parametrize(
    ("signum", "words"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, ["optimizer.fused=true", "optimizer.ema_decay=0.9"]),
        pytest.param(signal.SIGTERM, ["training.devices=2"], marks=pytest.mark.full),
    ],
)
def test_an_interrupted_run_keeps_its_last_epoch(tmp_path, signum, words):
    with started(tmp_path, *LONG, *words) as run:
        until(run, "epoch   3")  # the next checkpoint would be after the tenth
        said = ended(run, signum)
    path = tmp_path / "run/checkpoint.pt"
    done = torch.load(path, weights_only=True)["epoch"]
    assert 3 <= done < 1000
    assert [line for line in said.splitlines() if line.startswith("spectramind")] == [
        f"spectramind: interrupted after {done} of 1000 epochs; training.resume={path} goes on "
        "from there."
    ]
    assert "Traceback" not in said
    assert len((tmp_path / "run/history.csv").read_text().splitlines()) == 1 + done

    whole = spectramind(tmp_path, *LONG, *words, f"training.epochs={done}", "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    assert_same_weights(path, tmp_path / "whole/checkpoint.pt")


@pytest.mark.parametrize(
    ("every", "told"),
    [
        (0, "of 1000 epochs, of which training.checkpoint_every=0 keeps nothing"),
        (1, "of 1000 epochs; training.resume="),
    ],
)
def test_what_is_kept_is_what_was_asked_for(tmp_path, every, told):
    with started(tmp_path, *LONG, f"training.checkpoint_every={every}") as run:
        until(run, "epoch   2")
        assert told in ended(run, signal.SIGTERM)
    assert (tmp_path / "run/checkpoint.pt").exists() == bool(every)


def test_a_sweep_ends_with_the_run_it_is_in(tmp_path):
    words = ["-m", *LONG[:-1], "optimizer=adamw,sgd", "hydra.sweep.dir=runs"]
    with started(tmp_path, *words) as run:
        until(run, "epoch   1")
        assert "interrupted after" in ended(run, signal.SIGINT)
    assert (tmp_path / "runs/0/checkpoint.pt").exists()
    assert not (tmp_path / "runs/1").exists()


def test_a_folder_is_that_of_one_run_at_a_time(tmp_path):
    with started(tmp_path, *LONG) as first:
        until(first, "epoch   1")
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/.hydra").iterdir()}
        said = refused(" ".join(["spectramind", *LONG, "optimizer=sgd"]), tmp_path)
        assert "hydra.run.dir: another run is writing to run: give another folder" in said
        assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run/.hydra").iterdir()}
        ended(first, signal.SIGINT)
    again = spectramind(tmp_path, *SMALL, "training.epochs=1", "hydra.run.dir=run")
    assert again.returncode == 0, again.stderr
