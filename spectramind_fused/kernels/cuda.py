"""The `cuda` backend: the CUDA C++ of csrc/ through ctypes. Compiled ahead; no JIT, no upload.

The addresses of the gradients go along with a launch, as kernel arguments.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from spectramind_fused.kernels import native
from spectramind_fused.kernels.float64 import float64_is_slow
from spectramind_fused.kernels.native import NativeTables, Rule, loaded, required, rule_of
from spectramind_fused.kernels.place import on, stream
from spectramind_fused.multi_tensor import PIECE, STORAGES, Bucket, Reduction, Scaling, Tables

_LIBRARY = Path(__file__).with_name("_cuda.so")
_CHUNK = 8192
_NO_DOUBLE = STORAGES.keys() - {torch.float64}


class _CudaTables(NativeTables):
    """Native tables, with the gradient addresses and chunk ranges that a launch needs.

    Attributes:
        gradients: addresses of the gradients, which a launch passes as kernel arguments.
        chunk_starts, piece_starts: index of each tensor's first chunk (piece), then the total.
        tile_starts, vector_starts, batch_starts: likewise of tiles, pieces of vectors and batches
            of matrices, where tensors are factored.
        tensor_starts: likewise of tensors themselves, where they are measured.
    """

    uploads_gradients = False

    def __init__(self, bucket: Bucket, rule: Rule, kernels: int) -> None:
        super().__init__(bucket, _CHUNK, rule, kernels)
        sizes = [tensor.numel() for tensor in bucket.slots[0]]
        self.chunk_starts = _starts(sizes, _CHUNK)
        self.piece_starts = self.chunk_starts if _CHUNK == PIECE else _starts(sizes, PIECE)
        if bucket.factoring is not None:
            of_all = bucket.factoring.counts
            self.tile_starts, self.vector_starts, self.batch_starts = map(_summed, of_all)
        self.tensor_starts = _summed([1] * len(sizes)) if bucket.measured else array("q")
        self.gradients = array("q", [tensor.data_ptr() for tensor in bucket.slots[1]])

    def row_of_gradient(self, index: int) -> int:
        """As in Tables."""
        return _address(self.gradients) + 8 * index

    def set_gradient(self, index: int, address: int) -> bool:
        """As in Tables."""
        moved = self.gradients[index] != address
        self.gradients[index] = address
        return moved

    def set_gradients(self, addresses: list[int]) -> None:
        """As in Tables."""
        self.gradients[:] = array("q", addresses)

    def follow_gradients(self, moved: bool) -> None:
        """As in Tables."""


class CudaBackend:
    """CUDA kernels: float32, bfloat16 and float16 parameters on NVIDIA GPUs.

    Attributes:
        serves: the type of device; the tests have an emulated one.
    """

    name = "cuda"
    serves = "cuda"

    def unavailable(self, device: torch.device) -> str | None:
        """Why the CUDA kernels cannot run on `device`, or None."""
        problem = _load()[1]
        if problem:
            return problem
        if device.type != self.serves or torch.version.hip:
            return f"the cuda backend serves NVIDIA GPUs, not tensors on {_named(device)}"
        with on(device):
            error = _library().spectramind_check()
        return f"the CUDA kernels do not run on {device}: {_meaning(error)}" if error else None

    def prefers(self, device: torch.device) -> bool:
        """On GPUs, where Triton, which comes first, does not run."""
        return device.type != "cpu"

    def has_rule(self, rule: str) -> bool:
        """Whether the library has the rule."""
        return native.has_rule(_library(), rule)

    def unsupported(self, dtype: torch.dtype) -> str | None:
        """Why a dtype cannot be served, or None."""
        return None if dtype in _NO_DOUBLE else f"the cuda backend has no {dtype}"

    def tables(self, bucket: Bucket) -> Tables:
        """Builds the tables and finds the kernels of the bucket's rule."""
        rule = rule_of(_library(), bucket.rule, bucket.states)
        kernels = _library().spectramind_find(bucket.rule.encode(), bucket.states)
        return _CudaTables(bucket, rule, kernels)

    def bad_counter(self, tables: Tables) -> int | None:
        """Not looked for: it would wait for the GPU."""
        return None

    def norm(self, tables: Tables, reduction: Reduction) -> None:
        """Sums the squares of every piece."""
        assert isinstance(tables, _CudaTables)
        view = tables.view_for_norm(reduction)
        with on(tables.device):
            error = _library().spectramind_norm(
                ctypes.byref(view),
                _address(tables.gradients),
                _address(tables.piece_starts),
                float64_is_slow(tables.device),
                stream(tables.device),
            )
        _check(error)

    def sums(self, reduction: Reduction) -> Tensor:
        """The partial sums, or sums of them: then one launch."""
        if not reduction.many:
            return reduction.partials
        rows, sums = len(reduction.partials), reduction.room
        with on(sums.device):
            error = _library().spectramind_reduce(
                reduction.partials.data_ptr(), rows, sums.data_ptr(), stream(sums.device)
            )
        _check(error)
        return sums

    def advance(
        self, tables: Tables, reduction: Reduction, reduced: bool, scaling: Scaling
    ) -> None:
        """Counts the step and derives the scalars."""
        assert isinstance(tables, _CudaTables)
        view = tables.view_for_advance(reduction, reduced, scaling)
        with on(tables.device):
            error = _library().spectramind_advance(
                tables.kernels,
                ctypes.byref(view),
                _address(tables.gradients),
                stream(tables.device),
            )
        _check(error)

    def squares(self, tables: Tables, reduction: Reduction) -> None:
        """Sums the squares of rows and columns of every tile."""
        assert isinstance(tables, _CudaTables)
        view = tables.view_for_squares(reduction)
        with on(tables.device):
            error = _library().spectramind_squares(
                ctypes.byref(view),
                ctypes.byref(tables.factoring_view),
                _address(tables.gradients),
                _address(tables.tile_starts),
                stream(tables.device),
            )
        _check(error)

    def factor(self, tables: Tables) -> None:
        """Moves the vectors on, and makes factors of them."""
        assert isinstance(tables, _CudaTables)
        with on(tables.device):
            error = _library().spectramind_factor(
                tables.kernels,
                ctypes.byref(tables.view),
                ctypes.byref(tables.factoring_view),
                _address(tables.gradients),
                _address(tables.vector_starts),
                _address(tables.batch_starts),
                stream(tables.device),
            )
        _check(error)

    def measure(self, tables: Tables) -> None:
        """Reads every chunk, and scales the steps."""
        assert isinstance(tables, _CudaTables)
        with on(tables.device):
            error = _library().spectramind_measure(
                tables.kernels,
                ctypes.byref(tables.view),
                _address(tables.gradients),
                _address(tables.chunk_starts),
                _address(tables.tensor_starts),
                stream(tables.device),
            )
        _check(error)

    def update(self, tables: Tables) -> None:
        """Updates every chunk."""
        assert isinstance(tables, _CudaTables)
        with on(tables.device):
            error = _library().spectramind_update(
                tables.kernels,
                ctypes.byref(tables.view),
                _address(tables.gradients),
                _address(tables.chunk_starts),
                stream(tables.device),
            )
        _check(error)


def _starts(sizes: list[int], elements: int) -> array[int]:
    return _summed([-(-size // elements) for size in sizes])


def _summed(counts: list[int]) -> array[int]:
    return array("q", accumulate(counts, initial=0))


def _address(values: array[int]) -> int:
    return values.buffer_info()[0]


def _named(device: torch.device) -> str:
    return "a ROCm device" if torch.version.hip and device.type == "cuda" else str(device)


def _check(error: int) -> None:
    if error:
        raise RuntimeError(f"A launch of the CUDA kernels failed: {_meaning(error)}.")


def _meaning(error: int) -> str:
    message: bytes = _library().spectramind_error(error)
    return message.decode()


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    if not _LIBRARY.exists():
        why = _LIBRARY.with_suffix(".txt")  # setup.py leaves it
        reason = why.read_text().strip() if why.exists() else "nvcc was not found"
        return None, (
            f"the CUDA kernels were not built when spectramind_fused was installed ({reason}); "
            "put the CUDA toolkit's nvcc on PATH and reinstall"
        )
    library, problem = loaded(_LIBRARY, "CUDA")
    if library is None:
        return None, problem
    pointer, int32 = ctypes.c_void_p, ctypes.c_int32
    library.spectramind_find.argtypes = [ctypes.c_char_p, int32]
    library.spectramind_find.restype = pointer
    library.spectramind_error.argtypes = [int32]
    library.spectramind_error.restype = ctypes.c_char_p
    library.spectramind_norm.argtypes = [pointer, pointer, pointer, int32, pointer]
    library.spectramind_reduce.argtypes = [pointer, ctypes.c_int64, pointer, pointer]
    library.spectramind_advance.argtypes = [pointer] * 4
    library.spectramind_update.argtypes = [pointer] * 5
    library.spectramind_squares.argtypes = [pointer] * 5
    library.spectramind_factor.argtypes = [pointer] * 7
    library.spectramind_measure.argtypes = [pointer] * 6
    launches = ("norm", "reduce", "advance", "update", "squares", "factor", "measure")
    for name in ("check", *launches):
        getattr(library, f"spectramind_{name}").restype = int32
    return library, None


def _library() -> ctypes.CDLL:
    return required(_load())
