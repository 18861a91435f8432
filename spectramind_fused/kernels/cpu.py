"""The `cpu` backend: the C++ of csrc/ through ctypes, on torch's own threads."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import PIECE, Bucket, Gradients, Reduction, Tables

_LIBRARY = Path(__file__).with_name("_cpu.so")
_CHUNK = 16384
_WORTH_A_THREAD = 32768  # elements: below, waking another thread costs more than it saves
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


_SIZES = ("tensors", "chunks", "chunk_elements", "grain", "lookahead", "ema", "zero_grads")
_ARRAYS = (
    "pointers", "sizes", "groups", "chunk_table", "hyperparameters", "sources", "scalars", "dtypes",
)  # fmt: skip


class _CTables(ctypes.Structure):
    """`struct Tables` of csrc/tables.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        ("partials", ctypes.c_void_p),
        ("all_partials", ctypes.c_void_p),
        ("partial_rows", ctypes.c_int64),
        ("norm", ctypes.c_void_p),
        ("nonfinite", ctypes.c_void_p),
        ("grad_scale", ctypes.c_void_p),
        ("found_inf", ctypes.c_void_p),
        ("skip_nonfinite", ctypes.c_int64),
    ]


class _CpuTables(Tables):
    """Tables with their C view, and the kernels that serve them."""

    def __init__(self, bucket: Bucket, kernels: int, scalar_columns: int) -> None:
        super().__init__(bucket, _CHUNK, scalar_columns)
        self.kernels = ctypes.c_void_p(kernels)
        self._dtypes = (ctypes.c_int32 * len(bucket.slots))(*(_DTYPES[d] for d in bucket.dtypes))
        self.view = self._view(bucket, self.chunks, _CHUNK)
        self.norm_view = self._view(bucket, self.pieces, PIECE)

    def _view(self, bucket: Bucket, chunks: Tensor, elements: int) -> _CTables:
        return _CTables(
            tensors=len(bucket.groups),
            chunks=len(chunks),
            chunk_elements=elements,
            grain=max(1, _WORTH_A_THREAD * len(chunks) // max(1, self.elements)),
            lookahead=bucket.lookahead,
            ema=bucket.ema,
            zero_grads=bucket.zero_grads,
            pointers=self.pointers.data_ptr(),
            sizes=self.sizes.data_ptr(),
            groups=self.groups.data_ptr(),
            chunk_table=chunks.data_ptr(),
            scalars=self.scalars.data_ptr(),
            dtypes=ctypes.addressof(self._dtypes),
        )

    def set_hyperparameters(self, rows: Sequence[Sequence[Any]]) -> None:
        """As in Tables; the view follows if the arrays were made anew."""
        super().set_hyperparameters(rows)
        self.view.hyperparameters = self.hyperparameters.data_ptr()
        self.view.sources = self.sources.data_ptr()


class CpuBackend:
    """C++ kernels for CPU tensors: float32, float64, bfloat16 and float16."""

    name = "cpu"

    def unavailable(self, device: torch.device) -> str | None:
        """Why C++ cannot run here, or None."""
        if device.type != "cpu":
            return f"the cpu backend serves CPU tensors, not tensors on {device}"
        return _load()[1]

    def prefers(self, device: torch.device) -> bool:
        """Always, on a CPU."""
        return True

    def unsupported(self, dtype: torch.dtype) -> str | None:
        """Why a dtype cannot be served, or None."""
        return None if dtype in _DTYPES else f"the cpu backend has no {dtype}"

    def tables(self, bucket: Bucket) -> Tables:
        """Builds the tables and finds the kernels of the bucket's rule."""
        library = _library()
        compute = torch.float64 if bucket.dtypes[0] == torch.float64 else torch.float32
        kernels = library.spectramind_find(bucket.rule.encode(), bucket.states, _DTYPES[compute])
        if not kernels:
            raise NotImplementedError(
                f"csrc/ has no rule {bucket.rule!r} with {bucket.states} states; "
                "add it to kRegistry in csrc/cpu/step.cpp and rebuild."
            )
        return _CpuTables(bucket, kernels, library.spectramind_scalar_columns(kernels))

    def norm(self, tables: Tables, reduction: Reduction, first: int) -> None:
        """Sums the squares of every piece, on torch's threads."""
        assert isinstance(tables, _CpuTables)
        view = tables.norm_view
        view.partials = reduction.partials.data_ptr() + 16 * first
        _check(_library().spectramind_norm(ctypes.byref(view), _parallel_for()))

    def advance(self, tables: Tables, reduction: Reduction, gradients: Gradients) -> None:
        """Counts the step and derives the scalars."""
        assert isinstance(tables, _CpuTables)
        view = tables.view
        view.all_partials = reduction.partials.data_ptr()
        view.partial_rows = len(reduction.partials) if gradients.reduced else 0
        view.norm = reduction.norm.data_ptr()
        view.nonfinite = reduction.nonfinite.data_ptr()
        view.grad_scale = _address(gradients.grad_scale)
        view.found_inf = _address(gradients.found_inf)
        view.skip_nonfinite = gradients.skip_nonfinite
        _library().spectramind_advance(tables.kernels, ctypes.byref(view))

    def update(self, tables: Tables) -> None:
        """Updates every chunk, on torch's threads."""
        assert isinstance(tables, _CpuTables)
        _check(
            _library().spectramind_update(
                tables.kernels, ctypes.byref(tables.view), _parallel_for()
            )
        )


def _check(error: int) -> None:
    if error:
        raise RuntimeError(f"torch_parallel_for failed with code {error}.")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    if not _LIBRARY.exists():
        return None, (
            "the C++ kernels were not built when spectramind_fused was installed; "
            "install a C++17 compiler and reinstall"
        )
    try:
        library = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        return None, f"the C++ kernels do not load ({error}); reinstall spectramind_fused"
    pointer, int32 = ctypes.c_void_p, ctypes.c_int32
    library.spectramind_find.argtypes = [ctypes.c_char_p, int32, int32]
    library.spectramind_find.restype = pointer
    library.spectramind_scalar_columns.argtypes = [pointer]
    library.spectramind_scalar_columns.restype = ctypes.c_int64
    library.spectramind_advance.argtypes = [pointer, pointer]
    library.spectramind_advance.restype = None
    library.spectramind_norm.argtypes = [pointer, pointer]
    library.spectramind_update.argtypes = [pointer, pointer, pointer]
    library.spectramind_norm.restype = library.spectramind_update.restype = int32
    return library, None


def _library() -> ctypes.CDLL:
    library, problem = _load()
    if library is None:
        raise RuntimeError(problem)
    return library


@functools.cache
def _parallel_for() -> ctypes.c_void_p:
    """Address of torch's own parallel_for, in the C shim of libtorch since 2.10."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
    return ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p)
