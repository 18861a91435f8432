"""The memory's limit for a step: a loop that moves as many arrays at once and computes nothing."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from spectramind_fused.bench.timing import Spread
from spectramind_fused.bench.traffic import Traffic
from spectramind_fused.kernels import cpu

_ELEMENTS = 32_000_000  # of each array: far above any cache
_UPDATE, _READ = "memory, as many streams", "memory, read"


class Streams:
    """Two loops in C++ on torch's threads, to be timed among the steps.

    Attributes:
        steps: by their names.
    """

    def __init__(self) -> None:
        self._arrays = [torch.ones(_ELEMENTS) for _ in range(4)]
        at = [ctypes.c_void_p(array.data_ptr()) for array in self._arrays]
        arguments = (*at, ctypes.c_int64(_ELEMENTS), cpu._parallel_for())
        self.steps: dict[str, Callable[[], Any]] = {
            _UPDATE: lambda: loops().update(*arguments),
            _READ: lambda: loops().read(*arguments),
        }

    def limit(self, samples: Mapping[str, list[float]], traffic: Traffic) -> float:
        """Milliseconds: 16 bytes read for 12 written as the first loop does, the rest as the other.

        Args:
            samples: what the loops took, in milliseconds.
            traffic: of a step.
        """
        update, read = (Spread.of(samples[name]).median for name in self.steps)
        together = traffic.written / 12
        only_read = traffic.read - 16 * together
        return together * update / _ELEMENTS + only_read / 4 * read / _ELEMENTS


@functools.cache
def loops() -> ctypes.CDLL:
    """streams.cpp, compiled."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "streams.so")
        source = Path(__file__).with_suffix(".cpp")
        flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
        subprocess.run([*compiler, "-std=c++17", *flags, source, "-o", built], check=True)
        return ctypes.CDLL(str(built))
