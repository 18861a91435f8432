"""What a step takes: the median over the epochs, less the first one."""

import torch

from spectramind_fused.training import stopwatch
from spectramind_fused.training.stopwatch import Stopwatch


def timed(monkeypatch, *seconds):
    watch = Stopwatch(torch.device("cpu"), steps=4)
    for each in seconds:
        ticks = iter((100.0, 100.0 + each))
        monkeypatch.setattr(stopwatch.time, "perf_counter", lambda ticks=ticks: next(ticks))
        with watch.epoch():
            pass
    return watch.figures()


def test_the_median_epoch_over_its_steps(monkeypatch):
    figures = timed(monkeypatch, 800, 4, 400, 8)
    assert figures == {
        "ms per step": 2000.0, "epochs timed": 3, "steps per epoch": 4, "device": "cpu",
    }  # fmt: skip


def test_one_epoch_and_none(monkeypatch):
    assert timed(monkeypatch, 4)["ms per step"] == 1000.0
    assert timed(monkeypatch)["ms per step"] is None
