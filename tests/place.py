"""Where tests run: `pytest --device cuda` on a GPU, else on this machine's CPU."""

import functools

import pytest

from spectramind_fused.kernels import BACKENDS
from spectramind_fused.stepping.plan import Plan
from tests.backends import GPU_KERNELS, KERNELS

FOLDERS = ("optim", "drop_in", "compiled", "gpu")  # of tests, what runs on a GPU
device = "cpu"  # set by conftest.py, from --device; also torch's default
served = set()  # the backends that stepped anything; each test begins with none


def record_who_serves():
    """Notes from now on which backends each plan goes to."""
    run = Plan.run

    @functools.wraps(run)
    def recorded(self, *args, **kwargs):
        result = run(self, *args, **kwargs)
        served.update(bucket.backend for bucket in self.describe().buckets)
        return result

    Plan.run = recorded


def unserved(parameters):
    """Which backends a test names while others stepped; empty where it stepped nothing."""
    return ({*parameters} & {*KERNELS}) - served if served else set()


class Launched:
    """A launch on a real GPU: its name is known, what it did is not."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, name):
        pytest.skip(f"{name} is counted by the emulator: run it without --device")


class RealGPU:
    """What tests ask of an emulated GPU, as far as a real one answers it."""

    def __init__(self, monkeypatch):
        self.launches = []
        for backend in map(BACKENDS.get, GPU_KERNELS):
            for name in ("norm", "sums", "advance", "update", "squares", "factor", "measure"):
                monkeypatch.setattr(backend, name, self._noted(name, getattr(backend, name)))

    def _noted(self, name, launch):
        def noted(*args):
            made = launch(*args)
            if name != "sums":
                self.launches.append(Launched(name))
            elif made is not args[0].partials:
                self.launches.append(Launched("reduce"))
            return made

        return noted

    def poison(self, tensor):
        """A real GPU tells nobody what it read."""
