"""How long a device sleeps while a step is launched."""

from types import SimpleNamespace

import pytest
import torch

from spectramind_fused.bench import timing


@pytest.fixture
def device(monkeypatch):
    """A GPU that only sleeps; `now` is the time, and `awake` when it wakes up, in milliseconds."""
    it = SimpleNamespace(now=0.0, awake=0.0, slept=[])

    def sleep(cycles):
        it.slept.append(cycles / 2e6)
        it.awake = it.now + cycles / 2e6

    event = SimpleNamespace(record=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: it.now / 1e3)
    return it


def test_the_device_sleeps_longer_than_a_step_takes_to_launch(device):
    def step():
        device.now += 8

    clock = timing.EventClock()
    for _ in range(5):
        clock.time(step)
    assert device.slept == pytest.approx([1, 12, 12, 12, 12])
    assert clock.host == pytest.approx([8] * 5)


def test_a_step_that_waits_for_the_device_does_not_make_it_sleep_ever_longer(device):
    def step():
        device.now = max(device.now, device.awake) + 2

    clock = timing.EventClock()
    for _ in range(6):
        clock.time(step)
    assert device.slept == pytest.approx([1, 4.5, 1, 1, 1, 1])
    assert clock.host[-1] == pytest.approx(3)
