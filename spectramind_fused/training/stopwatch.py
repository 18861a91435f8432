"""What a training step takes, without a wait in any of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Takes the wall time of each epoch's training; the device is waited for at both its ends.

    Args:
        device: where it trains.
        steps: of the optimizer, in an epoch.
    """

    def __init__(self, device: torch.device, steps: int) -> None:
        self._device, self._steps = device, steps
        self._seconds: list[float] = []

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Times what is inside: the training of one epoch."""
        self._wait()
        began = time.perf_counter()
        yield
        self._wait()
        self._seconds.append(time.perf_counter() - began)

    def figures(self) -> dict[str, Any]:
        """The median over the epochs, and of what.

        In the first epoch of a run everything is set up: it counts only where it is the only one.
        """
        timed = self._seconds[1:] or self._seconds
        cuda = self._device.type == "cuda"
        return {
            "ms per step": 1e3 * statistics.median(timed) / self._steps if timed else None,
            "epochs timed": len(timed),
            "steps per epoch": self._steps,
            "device": torch.cuda.get_device_name(self._device) if cuda else self._device.type,
        }

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
