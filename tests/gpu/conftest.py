"""What a test asks of a GPU beyond tensors: captures, streams, launches; or of the emulated one."""

import contextlib
import warnings

import pytest
import torch

from spectramind_fused.bench.timing import recorded
from spectramind_fused.multi_tensor import runtime
from tests import place


class RealCard:
    """Torch's CUDA, and its profiler."""

    def capture(self, step):
        """The replay of a step, captured after three that warmed up."""
        return recorded(step)

    @contextlib.contextmanager
    def no_waits(self):
        """Whatever waits for the device raises."""
        torch.cuda.synchronize()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @contextlib.contextmanager
    def side_stream(self):
        """Another stream, ordered behind and before the one that was current."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def launched(self, step):
        """The kernels that a step launches, torch's own among them."""
        if not self._profiled(lambda: torch.ones(3)):
            pytest.skip("torch's profiler sees no kernels here")
        return self._profiled(step)

    def _profiled(self, step):
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            step()
            torch.cuda.synchronize()
        kernels = torch.autograd.DeviceType.CUDA
        return [event.name for event in profile.events() if event.device_type == kernels]


class PlayedCard:
    """The emulator, on which nothing waits; its streams and captures are played."""

    def __init__(self, emulated, monkeypatch):
        from tests.emulator.graphs import PlayedRuntime

        self.emulated = emulated
        self.runtime = PlayedRuntime(emulated)
        monkeypatch.setattr(runtime, "current", self.runtime)

    def capture(self, step):
        for _ in range(3):
            step()
        with self.runtime.capture() as graph:
            step()
        return graph.replay

    def no_waits(self):
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def side_stream(self):
        self.runtime.current_stream = 1
        yield
        self.runtime.current_stream = 0

    def launched(self, step):
        before = len(self.emulated.launches)
        step()
        return [launch.name for launch in self.emulated.launches[before:]]


@pytest.fixture
def card(request, monkeypatch):
    if place.device != "cpu":
        return RealCard()
    if request.config.emulated is None:
        pytest.skip("needs a GPU, or an emulated one")
    from tests.emulator import memory

    memory.settle()
    return PlayedCard(request.config.emulated, monkeypatch)
