"""Global memory: every access checked, every byte counted.

Only live CPU tensors may be touched, each access inside one of them and aligned to its whole
width. A byte is stored at most once in a launch; bytes marked as poison must be stored
before they are loaded.
"""

from __future__ import annotations

import ctypes
import gc
import weakref

import numpy as np
import torch

from tests.emulator import native

Array = np.ndarray


class MemoryFault(Exception):
    """What a GPU would answer with a fault, a race or garbage."""


class Traffic:
    """Executed global accesses of a launch: addresses, and the bytes at each."""

    def __init__(self) -> None:
        self.loads: list[tuple[Array, int]] = []
        self.stores: list[tuple[Array, int]] = []

    def read(self, state: int) -> None:
        """Takes over what machine.cpp recorded."""
        start = ctypes.POINTER(ctypes.c_uint64)()
        for store, accesses in enumerate((self.loads, self.stores)):
            for size in (1, 2, 4, 8, 16):
                count = native.library().emulator_accesses(state, store, size, start)
                if count:
                    accesses.append((np.ctypeslib.as_array(start, (count,)).copy(), size))

    @staticmethod
    def bytes_in(accesses: list[tuple[Array, int]], tensor: torch.Tensor) -> int:
        """How many bytes of the accesses fell into a tensor."""
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        return sum(int(((at >= start) & (at < end)).sum()) * size for at, size in accesses)

    def loaded(self, tensor: torch.Tensor) -> int:
        """Bytes loaded from a tensor."""
        return self.bytes_in(self.loads, tensor)

    def stored(self, tensor: torch.Tensor) -> int:
        """Bytes stored to a tensor."""
        return self.bytes_in(self.stores, tensor)


class Memory:
    """The memory of one launch.

    Args:
        poison: per byte of what begins at an address, whether nobody wrote it yet.
    """

    def __init__(self, poison: dict[int, Array] | None = None) -> None:
        self.traffic = Traffic()
        self.poison = poison if poison is not None else {}
        self.extents = native.Extents()
        self._point(*_extents(_alive(_young)))

    def refresh(self, times: int) -> int:
        """Looks for the tensor that an access fell into: among the youngest, at last everywhere.

        Args:
            times: how often that was done for this access.

        Returns:
            Whether it was worth another look.
        """
        if times <= len(_GENERATIONS):
            if times < len(_GENERATIONS):
                _look_among(gc.get_objects(generation=_GENERATIONS[times]))
            old = _comparable if times == len(_GENERATIONS) else []
            self._point(*_extents(_with_gradients(_alive([*old, *_young]))))
        return times <= len(_GENERATIONS)

    def _point(self, starts: Array, ends: Array) -> None:
        self._arrays = starts, ends
        self.extents.starts, self.extents.ends = starts.ctypes.data, ends.ctypes.data
        self.extents.count = len(starts)

    def poisoned(self) -> ctypes.Array[native.Poison]:
        """What machine.cpp is told of poison."""
        rows = [(at, len(flags), flags.ctypes.data) for at, flags in self.poison.items()]
        return (native.Poison * max(1, len(rows)))(*rows)


class Arguments:
    """The parameters of a launch: read only, each access inside one of them and aligned.

    Attributes:
        starts: where each parameter begins.
    """

    def __init__(self, sizes: dict[str, int], values: list[int | bytes]) -> None:
        self.starts: dict[str, int] = {}
        self.memory = np.zeros(16, np.uint8)  # nothing begins at 0
        self.inside = np.zeros(16, np.int64)  # of each byte, which parameter; 0: none
        for number, (name, value) in enumerate(zip(sizes, values, strict=True), 1):
            size = sizes[name]
            raw = (
                value
                if isinstance(value, bytes)
                else (value % 2 ** (8 * size)).to_bytes(size, "little")
            )
            if len(raw) != size:
                raise MemoryFault(f"{name} is given {len(raw)} bytes and takes {size}")
            gap = 32 - size % 16  # so that no access reaches the next
            self.starts[name] = len(self.memory)
            self.memory = np.append(self.memory, np.frombuffer(raw + bytes(gap), np.uint8))
            self.inside = np.append(self.inside, [number] * size + [0] * gap)


_GENERATIONS = (0, 1, None)  # None: everything that `settle` left to search
_GRAD = vars(torch._C.TensorBase)["grad"].__get__
_comparable: list[weakref.ref[torch.Tensor]] = []
_young: list[weakref.ref[torch.Tensor]] = []


def settle() -> None:
    """Looks for tensors once among all that lives now, and from now on only among what follows.

    Call it now and then: a search takes as long as there are objects.
    """
    gc.collect()
    _look_among(gc.get_objects())
    _comparable[:] = [weakref.ref(tensor) for tensor in _alive([*_comparable, *_young])]
    _young.clear()
    gc.freeze()


def forget() -> None:
    """Drops the weak references to what was made since; swap_tensors refuses who has any."""
    _young.clear()


def _look_among(things: list[object]) -> None:
    known = {id(tensor) for tensor in _alive([*_comparable, *_young])}
    # type(), not isinstance(): lazy proxies answer that with side effects
    _young.extend(
        weakref.ref(thing)
        for thing in things
        if issubclass(type(thing), torch.Tensor) and id(thing) not in known
    )


def _alive(tensors: list[weakref.ref[torch.Tensor]]) -> list[torch.Tensor]:
    return [tensor for known in tensors if (tensor := known()) is not None]


def _with_gradients(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Also those of a backward pass, of which Python has no object until somebody asks."""
    gradients = (_GRAD(tensor) for tensor in tensors if tensor.is_leaf)
    return [*tensors, *(gradient for gradient in gradients if gradient is not None)]


def _extents(tensors: list[torch.Tensor]) -> tuple[Array, Array]:
    """Starts and ends of tensors' bytes; only overlapping ones are united."""
    extents = []
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.numel():
            try:
                start = tensor.data_ptr()
            except RuntimeError:  # a fake one, which torch.compile traces with
                continue
            reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            extents.append((start, start + (reach + 1) * tensor.element_size()))
    extents.sort()
    united: list[list[int]] = []
    for start, end in extents:
        if united and start < united[-1][1]:
            united[-1][1] = max(end, united[-1][1])
        else:
            united.append([start, end])
    starts, ends = zip(*united, strict=True) if united else ((), ())
    return np.array(starts, np.uint64), np.array(ends, np.uint64)
