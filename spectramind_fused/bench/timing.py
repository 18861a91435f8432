"""Times steps side by side: one of each in turn, so that a slow moment strikes them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch

from spectramind_fused.bench.traffic import Traffic

WARM_UP = 3  # rounds; the first makes states and compiles, then caches and threads settle
_CYCLES_PER_MS = 2_000_000  # at most
_SHORTEST_SLEEP = _CYCLES_PER_MS  # cycles
_LONGEST_SLEEP = 400_000_000
_ELEMENTS = 64_000_000  # of the array that shows the memory's limit: far above any cache


class Spread(NamedTuple):
    """Milliseconds per step.

    Attributes:
        low: a quarter of the samples lie below.
        median: half of them.
        high: three quarters.
    """

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Spread:
        """The quartiles of samples."""
        if len(samples) < 2:
            return cls(*samples * 3)
        return cls(*statistics.quantiles(samples, n=4, method="inclusive"))


class Bandwidth(NamedTuple):
    """What the memory gave, in bytes per millisecond.

    Attributes:
        updated: read and written in place, both counted.
        read: read only.
    """

    updated: float
    read: float

    def limit(self, traffic: Traffic) -> float:
        """Milliseconds for what is read and written back, and for the rest."""
        both = min(traffic.read, traffic.written)
        return 2 * both / self.updated + abs(traffic.read - traffic.written) / self.read


def interleaved(
    steps: Mapping[str, Callable[[], Any]],
    device: torch.device,
    samples: int,
    cycle: int = 1,
    prepare: Callable[[str], Any] | None = None,
) -> dict[str, list[float]]:
    """Runs every step in turn, again and again, each time beginning with another one.

    Args:
        steps: what to time.
        device: where they run; on a GPU its events take the time.
        samples: how many to take of each.
        cycle: calls of a step whose mean is one sample.
        prepare: runs before each call, untimed, and is told of which step.

    Returns:
        For each step its samples, in milliseconds.
    """
    cuda = device.type == "cuda"
    clocks: dict[str, Any] = {name: EventClock() if cuda else HostClock() for name in steps}
    seen: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps.items())
    warm_up = -(-WARM_UP // cycle) * cycle
    for turn in range(warm_up + samples * cycle):
        for name, step in order:
            if prepare is not None:
                prepare(name)
            seen[name].append(clocks[name].time(step))
        order = [*order[1:], order[0]]
        if turn + 1 == warm_up:
            seen = {name: [] for name in steps}
    resolved = {name: list(map(clocks[name].milliseconds, times)) for name, times in seen.items()}
    return {
        name: [statistics.mean(times[i : i + cycle]) for i in range(0, len(times), cycle)]
        for name, times in resolved.items()
    }


class HostClock:
    """The time that passes."""

    def time(self, step: Callable[[], Any]) -> Any:
        """Runs the step; `milliseconds` says what it took."""
        begin = time.perf_counter()
        step()
        return 1e3 * (time.perf_counter() - begin)

    def milliseconds(self, taken: Any) -> float:
        """What it took."""
        return float(taken)


class EventClock:
    """The device's own time of a step, Python left out.

    The device sleeps while the step is launched, so that no launch is waited for: the queue of a
    step that is bound by Python would run empty, and its events would show Python's time. A step
    that waits for the device by itself wakes up with it, however long it sleeps: then it sleeps for
    a millisecond, and the events show what passes.

    Attributes:
        host: milliseconds that Python took, of each step.
    """

    def __init__(self) -> None:
        self.host: list[float] = []
        self._cycles = _SHORTEST_SLEEP
        self._slept_through = 0  # steps in a row that took as long as the device slept

    def time(self, step: Callable[[], Any]) -> Any:
        """Runs the step; `milliseconds` says what it took."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda._sleep(self._cycles)  # type: ignore[no-untyped-call]
        begin.record()
        since = time.perf_counter()
        step()
        self.host.append(1e3 * (time.perf_counter() - since))
        end.record()
        self._sleep_for(self.host[-1])
        return begin, end

    def _sleep_for(self, host: float) -> None:
        """Half as long again as Python took, unless it only waited for the end of the sleep."""
        if self._slept_through == 2:
            return
        waited = host >= self._cycles / _CYCLES_PER_MS
        self._slept_through = self._slept_through + 1 if waited else 0
        needed = int(1.5 * _CYCLES_PER_MS * host)
        self._cycles = min(max(_SHORTEST_SLEEP, needed), _LONGEST_SLEEP)
        if self._slept_through == 2:  # longer than the first time, and all of it again
            self._cycles = _SHORTEST_SLEEP

    def milliseconds(self, taken: Any) -> float:
        """What the device took."""
        begin, end = taken
        end.synchronize()
        return float(begin.elapsed_time(end))


def recorded(step: Callable[[], Any]) -> Callable[[], Any]:
    """A CUDA graph of a step, to be replayed; it must have run before."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class Probe(Protocol):
    """Steps that do nothing but move memory, to be timed among the others.

    Attributes:
        steps: by their names.
    """

    steps: dict[str, Callable[[], Any]]

    def limit(self, samples: Mapping[str, list[float]], traffic: Traffic) -> float:
        """Milliseconds that the memory needs for some bytes, from what the steps took."""


class MemoryProbe:
    """Two operators of torch's, on one array."""

    def __init__(self, device: torch.device) -> None:
        self._array = torch.ones(_ELEMENTS, device=device)
        self.steps: dict[str, Callable[[], Any]] = {
            "memory, updated": lambda: self._array.mul_(1.0),
            "memory, read": self._array.sum,
        }

    def limit(self, samples: Mapping[str, list[float]], traffic: Traffic) -> float:
        """As in Probe."""
        return self.bandwidth(samples).limit(traffic)

    def bandwidth(self, samples: Mapping[str, list[float]]) -> Bandwidth:
        """From what the two steps took."""
        updated, read = (Spread.of(samples[name]).median for name in self.steps)
        size = 4.0 * _ELEMENTS
        return Bandwidth(2 * size / updated, size / read)
