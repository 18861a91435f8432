"""Ctrl-C, SIGTERM and a second run in the same folder."""

import multiprocessing
import signal
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from spectramind_fused.training import checkpoint, interrupts, processes
from spectramind_fused.training.keeper import Keeper
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


def test_a_signal_before_a_process_trains_is_handed_over():
    """One that dies without a word leaves the process that started it waiting for ever."""
    fabric = SimpleNamespace(world_size=1, is_global_zero=True)

    def loads(_):
        signal.raise_signal(signal.SIGINT)

    ended = processes._outcome(fabric, warnings.formatwarning, loads, ())
    assert isinstance(ended, interrupts.Interrupted)
    assert ended.status == 130


def test_a_signal_that_no_process_is_left_to_take_ends_the_one_that_started_them():
    with pytest.raises(interrupts.Interrupted), interrupts.handed_on():
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_ends_a_process_while_it_starts_loses_nothing(monkeypatch):
    class Starting:
        world_size = 2

        def __init__(self, **_):
            pass

        def launch(self, *_):
            signal.raise_signal(signal.SIGINT)
            raise ProcessExitedException("", 0, 1, exit_code=-2, signal_name="SIGINT")

    monkeypatch.setattr("lightning_fabric.Fabric", Starting)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [SimpleNamespace(pid=None)])
    with pytest.raises(interrupts.Interrupted) as ended:
        processes.launched(print, accelerator="cpu", devices=1, precision="32-true")
    assert ended.value.status == 130


def test_a_second_signal_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    model, optimizer = torch.nn.Linear(1, 1), SimpleNamespace(state_dict=dict)
    precision = SimpleNamespace(state_dict=dict)
    keeper = Keeper(tmp_path, 1, 9, {}, 1, model, optimizer, None, precision)

    def interrupted(*_):
        raise interrupts.Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        with pytest.raises(interrupts.Interrupted):
            keeper.epoch(1, 10)
    assert keeper.interrupted().startswith("before its first epoch was finished")
    keeper.epoch(1, 10)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        with pytest.raises(interrupts.Interrupted):
            keeper.epoch(2, 20)
    assert keeper.interrupted().startswith("after 1 of 9 epochs; training.resume=")


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
