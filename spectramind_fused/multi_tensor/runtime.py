"""What a step asks of a GPU's runtime: streams, captured graphs, pinned memory.

In one object, so that tests can play one.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import torch
from torch import Tensor


class Watch:
    """Tells whether a captured graph is still there.

    Attributes:
        capture: the number that CUDA gave the capture; 0 where it gave none.
    """

    def __init__(self, capture: int) -> None:
        self.capture = capture

    def gone(self) -> bool:
        """Whether the graph can be replayed no more; one of which nothing is known never is."""
        return False

    def same(self, other: Watch) -> bool:
        """Whether both keep alike: they watch one graph, or nothing is known of either."""
        return self is other or self.capture == other.capture == 0


class Runtime:
    """The CUDA runtime, or AMD's, as torch has it."""

    def serves(self, device: torch.device) -> bool:
        """Whether tensors of this device wait for streams."""
        return device.type == "cuda"

    def capturing(self, device: torch.device) -> bool:
        """Whether a graph is being captured on the device's current stream."""
        if device.index in (None, torch._C._cuda_getDevice()):
            return torch.cuda.is_current_stream_capturing()
        with torch.cuda.device(device):
            return torch.cuda.is_current_stream_capturing()

    def watch(self, device: torch.device) -> Watch:
        """Watches the graph that is being captured."""
        return _watch(torch.cuda.current_stream(device).cuda_stream)

    def stream(self, device: torch.device) -> int:
        """The number of the device's current stream."""
        index = torch._C._cuda_getDevice() if device.index is None else device.index
        return torch._C._cuda_getCurrentRawStream(index)

    def record(self, tensor: Tensor) -> None:
        """Keeps a tensor's memory from others until the current stream has come this far."""
        tensor.record_stream(torch.cuda.current_stream(tensor.device))

    def pinned(self, size: int) -> Tensor:
        """Memory of the host, in bytes, that a GPU reads while the processor goes on."""
        return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)


current = Runtime()


# A graph may own "user objects": when the last copy of the graph is destroyed, CUDA calls a C
# function for each, on a thread of its own, that must neither call CUDA nor wait for Python. Here
# it is libc's sem_post, and the semaphore is asked now and then. (CUDA's driver API, since 11.3.)

_SEMAPHORE_BYTES = 64  # 32 in glibc
_MOVE_REFERENCE, _NO_DESTRUCTOR_SYNC = 1, 1  # CU_GRAPH_USER_OBJECT_MOVE, CU_USER_OBJECT_NO_...
_waiting: list[_CudaWatch] = []  # one for each graph that is there


class _CudaWatch(Watch):
    def __init__(self, capture: int) -> None:
        super().__init__(capture)
        # Not Python's memory: a graph may live longer than the interpreter.
        self.semaphore = ctypes.c_void_p(_libc().malloc(_SEMAPHORE_BYTES))
        self._gone = False
        _libc().sem_init(self.semaphore, 0, 0)

    def gone(self) -> bool:
        if not self._gone and _libc().sem_trywait(self.semaphore) == 0:
            self._gone = True
            _waiting.remove(self)
            _libc().free(self.semaphore)
        return self._gone


def _watch(stream: int) -> Watch:
    """Watches the graph that is being captured on a stream."""
    driver = _driver()
    if driver is None:
        return Watch(0)
    status, capture = ctypes.c_int(), ctypes.c_uint64()
    graph, held = ctypes.c_void_p(), ctypes.c_void_p()
    none = [None] * (driver.info_arguments - 4)
    error = driver.capture_info(
        ctypes.c_void_p(stream),
        ctypes.byref(status),
        ctypes.byref(capture),
        ctypes.byref(graph),
        *none,
    )
    if error or not graph.value:
        return Watch(0)
    for other in tuple(_waiting):  # also of whom nobody asks any more
        if not other.gone() and other.capture == capture.value:
            return other
    watch = _CudaWatch(capture.value)
    post = ctypes.cast(_libc().sem_post, ctypes.c_void_p)
    error = driver.library.cuUserObjectCreate(
        ctypes.byref(held), watch.semaphore, post, 1, _NO_DESTRUCTOR_SYNC
    )
    if error:
        _libc().free(watch.semaphore)
        return Watch(0)
    if driver.library.cuGraphRetainUserObject(graph, held, 1, _MOVE_REFERENCE):
        driver.library.cuUserObjectRelease(held, 1)
        return Watch(0)
    _waiting.append(watch)
    return watch


class _Driver:
    """The functions of CUDA's driver that know of user objects."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        # One argument more, of no interest here, since CUDA 12.3.
        v2 = hasattr(library, "cuStreamGetCaptureInfo_v2")
        self.info_arguments = 6 if v2 else 7
        name = "cuStreamGetCaptureInfo_v2" if v2 else "cuStreamGetCaptureInfo_v3"
        self.capture_info: Any = getattr(library, name)
        library.cuUserObjectCreate.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        ]  # fmt: skip
        library.cuUserObjectRelease.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.cuGraphRetainUserObject.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        ]  # fmt: skip


@functools.cache
def _driver() -> _Driver | None:
    """CUDA's driver; None where it has no user objects, or is AMD's."""
    if torch.version.hip or not sys.platform.startswith("linux"):
        return None
    try:
        return _Driver(ctypes.CDLL("libcuda.so.1"))
    except (OSError, AttributeError):
        return None


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    for name in ("free", "sem_trywait"):
        getattr(libc, name).argtypes = [ctypes.c_void_p]
    libc.sem_init.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]
    return libc
