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

_ELEMENTS = 32_000_000  # of each array: far above any cache
_UPDATE, _READ = "memory, as many streams", "memory, read"


class Streams:
    """Two loops in C++ on as many threads as torch has, to be timed among the steps.

    Attributes:
        steps: by their names.
    """

    def __init__(self) -> None:
        self._arrays = [torch.ones(_ELEMENTS) for _ in range(4)]
        at = [ctypes.c_void_p(array.data_ptr()) for array in self._arrays]
        counts = ctypes.c_int64(_ELEMENTS), ctypes.c_int64(torch.get_num_threads())
        library = loops()
        self.steps: dict[str, Callable[[], Any]] = {
            _UPDATE: lambda: library.update(*at, *counts),
            _READ: lambda: library.read(at[3], *counts),
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
        flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-pthread"]
        subprocess.run([*compiler, "-std=c++17", *flags, source, "-o", built], check=True)
        library = ctypes.CDLL(str(built))
    library.read.restype = ctypes.c_float
    return library
