"""machine.cpp through ctypes: compiled once for each text of it, and the structs it is given."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint64, c_void_p
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "emulator"
# An fma is one that the PTX writes out; the machine is this one, so fma is an instruction.
FLAGS = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno",
         "-fno-trapping-math", "-Wall", "-Wextra", "-shared", "-fPIC"]  # fmt: skip
REFRESH = ctypes.CFUNCTYPE(c_int, c_int)


def _fields(text: str) -> list[tuple[str, type]]:
    kinds = {"i": c_int32, "q": c_int64, "p": c_void_p, "Q": c_uint64}
    return [(name, kinds[kind]) for kind, _, name in (word.partition(":") for word in text.split())]


class Instruction(ctypes.Structure):
    _fields_ = (
        *_fields("i:kind i:function i:guard i:negated i:space i:mode i:size i:count q:offset"),
        *_fields("i:outputs i:inputs"),
        ("operands", c_int32 * 8),
        ("take", c_int32 * 3),
        ("leader", c_int32),
    )


class Program(ctypes.Structure):
    _fields_ = (
        *_fields("p:code q:length p:widths p:values p:constant q:slots q:threads"),
        *_fields("i:lane i:thread"),
        ("block", c_int32 * 3),
        *_fields("i:threads_x i:blocks_x"),
    )


class Extents(ctypes.Structure):
    _fields_ = _fields("p:starts p:ends q:count")


class Poison(ctypes.Structure):
    _fields_ = _fields("Q:start Q:size p:flags")


class Run(ctypes.Structure):
    _fields_ = (
        ("grid", c_int64 * 3),
        *_fields("q:shared_bytes q:limit p:arguments p:inside q:argument_bytes p:extents"),
        ("refresh", REFRESH),
        *_fields("p:poison q:poisoned p:executed"),
    )


class Fault(ctypes.Structure):
    _fields_ = _fields("i:code i:space i:store i:slot q:instruction q:address q:bytes")


def cached(name: str, *contents: str | bytes) -> Path:
    """Where what is made of these contents is kept, across processes and runs."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content.encode() if isinstance(content, str) else content)
        digest.update(b"\0")
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE / f"{digest.hexdigest()[:20]}-{name}"


def compiled(library: Path, command: list[str]) -> Path:
    """Makes a library that is not there yet, by a command without `-o`; one process does."""
    with FileLock(f"{library}.lock"):
        if not library.exists():
            made = library.with_suffix(".new")
            run = subprocess.run(
                [*command, "-o", str(made)], capture_output=True, text=True, check=False
            )
            assert run.returncode == 0, run.stdout + run.stderr
            made.rename(library)
    return library


def _compiled() -> Path:
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    sources = [HERE / "machine.cpp", HERE / "opcodes.h"]
    library = cached("machine.so", *compiler, *FLAGS, *(s.read_bytes() for s in sources), _cpu())
    return compiled(library, [*compiler, *FLAGS, str(sources[0])])


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@functools.cache
def library() -> ctypes.CDLL:
    """The emulator's own code."""
    loaded = ctypes.CDLL(str(_compiled()))
    loaded.emulator_opcodes.restype = c_int64
    for name in ("name", "to", "sources"):
        function = getattr(loaded, f"emulator_opcode_{name}")
        function.argtypes, function.restype = [c_int64], c_char_p
    loaded.emulator_compute.argtypes = [c_int64, POINTER(c_void_p), POINTER(c_void_p), c_int]
    loaded.emulator_run.argtypes = [POINTER(Program), POINTER(Run), POINTER(Fault)]
    loaded.emulator_run.restype = c_void_p
    loaded.emulator_accesses.argtypes = [c_void_p, c_int, c_int, POINTER(POINTER(c_uint64))]
    loaded.emulator_accesses.restype = c_int64
    loaded.emulator_forget.argtypes = [c_void_p]
    return loaded


__all__ = ["CACHE", "REFRESH", "Extents", "Fault", "Instruction", "Poison", "Program", "Run",
           "c_uint8", "cached", "library"]  # fmt: skip
