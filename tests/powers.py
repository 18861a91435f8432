"""csrc/power.h, compiled: what the kernels take for base ** exponent."""

import ctypes
import functools
from pathlib import Path

from tests.emulator.native import cached, compiled

SOURCE = Path(__file__).with_suffix(".cpp")
HEADER = SOURCE.parents[1] / "csrc" / "power.h"
COMMAND = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", str(SOURCE)]


@functools.cache
def _library():
    path = cached("powers.so", SOURCE.read_bytes(), HEADER.read_bytes(), *COMMAND)
    library = ctypes.CDLL(str(compiled(path, COMMAND)))
    library.real_power.argtypes = [ctypes.c_double] * 2
    library.real_power.restype = ctypes.c_double
    return library


def real_power(base, exponent):
    """Of two numbers."""
    return _library().real_power(base, exponent)
