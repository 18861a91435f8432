"""The `cpu` backend: the C++ of csrc/ through ctypes, on torch's own threads."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import torch
from torch import Tensor

from spectramind_fused.kernels import native
from spectramind_fused.kernels.native import (
    NativeTables,
    host_description,
    loaded,
    required,
    rule_of,
)
from spectramind_fused.multi_tensor import STORAGES, Bucket, Reduction, Scaling, Tables

_LIBRARY = Path(__file__).with_name("_cpu.so")
_CHUNK = 16384
_MIN_ELEMENTS_PER_THREAD = 32768  # elements: below, waking another thread costs more than it saves


class CpuBackend:
    """C++ kernels for CPU tensors: float32, float64, bfloat16 and float16."""

    name = "cpu"

    def unavailable(self, device: torch.device) -> str | None:
        """Why C++ cannot run here, or None."""
        if device.type != "cpu":
            return f"the cpu backend serves CPU tensors, not tensors on {device}"
        return _load()[1]

    def prefers(self, device: torch.device) -> bool:
        """On CPUs."""
        return device.type == "cpu"

    def has_rule(self, rule: str) -> bool:
        """Whether the library has the rule."""
        return native.has_rule(_library(), rule)

    def unsupported(self, dtype: torch.dtype) -> str | None:
        """Why a dtype cannot be served, or None."""
        return None if dtype in STORAGES else f"the cpu backend has no {dtype}"

    def tables(self, bucket: Bucket) -> Tables:
        """Builds the tables and finds the kernels of the bucket's rule."""
        rule = rule_of(_library(), bucket.rule, bucket.states)
        compute = torch.float64 if bucket.storages[0] == torch.float64 else torch.float32
        name = bucket.rule.encode()
        kernels = _library().spectramind_find(name, bucket.states, STORAGES[compute])
        return NativeTables(bucket, _CHUNK, rule, kernels, _MIN_ELEMENTS_PER_THREAD)

    def bad_counter(self, tables: Tables) -> int | None:
        """The first tensor whose step counter is no number of steps."""
        assert isinstance(tables, NativeTables)
        found: int = _library().spectramind_bad_counter(ctypes.byref(tables.view))
        return None if found < 0 else found

    def norm(self, tables: Tables, reduction: Reduction) -> None:
        """Sums the squares of every piece, on torch's threads."""
        assert isinstance(tables, NativeTables)
        view = tables.view_for_norm(reduction)
        _check(_library().spectramind_norm(ctypes.byref(view), _parallel_for()))

    def sums(self, reduction: Reduction) -> Tensor:
        """The partial sums: one thread adds up a million in a millisecond."""
        return reduction.partials

    def advance(
        self, tables: Tables, reduction: Reduction, reduced: bool, scaling: Scaling
    ) -> None:
        """Counts the step and derives the scalars."""
        assert isinstance(tables, NativeTables)
        view = tables.view_for_advance(reduction, reduced, scaling)
        _library().spectramind_advance(tables.kernels, ctypes.byref(view))

    def squares(self, tables: Tables, reduction: Reduction) -> None:
        """Sums the squares of rows and columns, on torch's threads."""
        assert isinstance(tables, NativeTables)
        view, more = tables.view_for_squares(reduction), ctypes.byref(tables.factoring_view)
        kernels = tables.kernels
        _check(_library().spectramind_squares(kernels, ctypes.byref(view), more, _parallel_for()))

    def factor(self, tables: Tables) -> None:
        """Moves the vectors on, on torch's threads."""
        assert isinstance(tables, NativeTables)
        view, more = ctypes.byref(tables.view), ctypes.byref(tables.factoring_view)
        _check(_library().spectramind_factor(tables.kernels, view, more, _parallel_for()))

    def measure(self, tables: Tables) -> None:
        """Reads every chunk and scales the steps, on torch's threads."""
        assert isinstance(tables, NativeTables)
        view = ctypes.byref(tables.view)
        _check(_library().spectramind_measure(tables.kernels, view, _parallel_for()))

    def update(self, tables: Tables) -> None:
        """Updates every chunk, on torch's threads."""
        assert isinstance(tables, NativeTables)
        _check(
            _library().spectramind_update(
                tables.kernels, ctypes.byref(tables.view), _parallel_for()
            )
        )


def _check(error: int) -> None:
    if error:
        raise RuntimeError(f"torch_parallel_for failed with code {error}.")


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    if not _LIBRARY.exists():
        return None, (
            "the C++ kernels were not built when spectramind_fused was installed; "
            "install a C++17 compiler and reinstall"
        )
    library, problem = loaded(_LIBRARY, "C++", host_description())
    if library is None:
        return None, problem
    pointer, int32 = ctypes.c_void_p, ctypes.c_int32
    library.spectramind_find.argtypes = [ctypes.c_char_p, int32, int32]
    library.spectramind_find.restype = pointer
    library.spectramind_bad_counter.argtypes = [pointer]
    library.spectramind_bad_counter.restype = ctypes.c_int64
    library.spectramind_advance.argtypes = [pointer, pointer]
    library.spectramind_advance.restype = None
    library.spectramind_norm.argtypes = [pointer, pointer]
    library.spectramind_update.argtypes = [pointer, pointer, pointer]
    library.spectramind_squares.argtypes = [pointer] * 4
    library.spectramind_factor.argtypes = [pointer] * 4
    library.spectramind_measure.argtypes = [pointer] * 3
    for name in ("norm", "update", "squares", "factor", "measure"):
        getattr(library, f"spectramind_{name}").restype = int32
    return library, None


def _library() -> ctypes.CDLL:
    return required(_load())


@functools.cache
def _parallel_for() -> ctypes.c_void_p:
    """Address of torch's own parallel_for, in the C shim of libtorch since 2.10."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
    return ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p)
