"""Global memory: every access checked, every byte counted.

Only live CPU tensors may be touched, each access inside one of them and aligned to its whole
width. A byte is stored at most once in a launch; bytes marked as poison must be stored
before they are loaded.
"""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import torch

Array = np.ndarray
_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


class MemoryFault(Exception):
    """What a GPU would answer with a fault, a race or garbage."""


class Traffic:
    """Executed global accesses of a launch: (address, bytes) of each."""

    def __init__(self) -> None:
        self.loads: list[tuple[Array, int]] = []
        self.stores: list[tuple[Array, int]] = []

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
    """The memory of one launch."""

    def __init__(self, poison: dict[int, Array] | None = None) -> None:
        self.starts, self.ends = _live_extents()
        self.base = int(self.starts.min()) & ~15 if len(self.starts) else 0
        top = int(self.ends.max()) if len(self.ends) else 16
        # One view over all of them, holes included: only checked addresses are ever used.
        span = (ctypes.c_uint8 * ((top - self.base + 15) & ~15)).from_address(self.base)
        bytes_ = np.frombuffer(span, np.uint8)
        self.views = {size: bytes_.view(dtype) for size, dtype in _UNSIGNED.items()}
        self.traffic = Traffic()
        self.poison = poison if poison is not None else {}  # start -> per byte: not yet written

    def load(self, address: Array, size: int) -> Array:
        """Loads `size` bytes from each address."""
        self._check(address, size, "load")
        for start, flags in self.poison.items():
            inside = (address >= start) & (address < start + len(flags))
            if flags[(address[inside] - start).astype(np.int64)].any():
                raise MemoryFault("a load reads what nobody wrote")
        self.traffic.loads.append((address, size))
        return self.views[size][self._index(address, size)]

    def store(self, address: Array, size: int, values: Array) -> None:
        """Stores `size` bytes to each address."""
        self._check(address, size, "store")
        for start, flags in self.poison.items():
            inside = (address >= start) & (address < start + len(flags))
            at = (address[inside] - start).astype(np.int64)
            for byte in range(size):
                flags[at + byte] = False
        self.traffic.stores.append((address, size))
        self.views[size][self._index(address, size)] = values

    def finish(self) -> None:
        """Checks that no byte was stored twice; every access is of at least two bytes."""
        stores = self.traffic.stores
        touched = [at + np.uint64(2 * i) for at, size in stores for i in range(size // 2)]
        if touched:
            every = np.concatenate(touched)
            every.sort()
            if (every[1:] == every[:-1]).any():
                raise MemoryFault("one address is stored twice in a launch")

    def _index(self, address: Array, size: int) -> Array:
        return ((address - np.uint64(self.base)) // np.uint64(size)).astype(np.int64)

    def _check(self, address: Array, size: int, what: str) -> None:
        region = np.searchsorted(self.starts, address, side="right") - 1
        outside = (region < 0) | (address + np.uint64(size) > self.ends[region])
        if outside.any():
            where = hex(int(address[outside][0]))
            raise MemoryFault(f"a {what} of {size} bytes at {where} is inside no tensor")

    def check_alignment(self, address: Array, width: int, what: str) -> None:
        """A vector access must be aligned to its whole width."""
        if (address % np.uint64(width)).any():
            raise MemoryFault(f"a {what} of {width} bytes is misaligned")


class Arguments:
    """The parameters of a launch: read only, each access inside one of them and aligned.

    Attributes:
        starts: where each parameter begins.
    """

    def __init__(self, sizes: dict[str, int], values: list[int | bytes]) -> None:
        self.starts: dict[str, int] = {}
        self._memory = np.zeros(16, np.uint8)  # nothing begins at 0
        self._inside = np.zeros(16, np.int64)  # of each byte, which parameter; 0: none
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
            self.starts[name] = len(self._memory)
            self._memory = np.append(self._memory, np.frombuffer(raw + bytes(gap), np.uint8))
            self._inside = np.append(self._inside, [number] * size + [0] * gap)

    def check(self, address: Array, width: int) -> None:
        """Refuses what is misaligned, or not inside one parameter."""
        if (address % np.uint64(width)).any():
            raise MemoryFault(f"a load of {width} bytes of arguments is misaligned")
        outside = (address < 16) | (address + np.uint64(width) > np.uint64(len(self._inside)))
        if outside.any() or not self._inside[_bytes_at(address, width)].all():
            raise MemoryFault(f"a load of {width} bytes of arguments is inside none of them")

    def load(self, address: Array, size: int) -> Array:
        """Loads `size` bytes from each address."""
        return np.ascontiguousarray(self._memory[_bytes_at(address, size)]).view(_UNSIGNED[size])[
            :, 0
        ]


def _bytes_at(address: Array, size: int) -> Array:
    return address.astype(np.int64)[:, None] + np.arange(size)


def _live_extents() -> tuple[Array, Array]:
    """Starts and ends of all live CPU tensors' bytes; only overlapping ones are united."""
    extents = []
    for thing in gc.get_objects():
        # type(), not isinstance(): lazy proxies answer that with side effects
        if not issubclass(type(thing), torch.Tensor) or thing.device.type != "cpu":
            continue
        if thing.layout is torch.strided and thing.numel():
            start = thing.data_ptr()
            reach = sum((n - 1) * s for n, s in zip(thing.shape, thing.stride(), strict=True))
            extents.append((start, start + (reach + 1) * thing.element_size()))
    extents.sort()
    united: list[list[int]] = []
    for start, end in extents:
        if united and start < united[-1][1]:
            united[-1][1] = max(end, united[-1][1])
        else:
            united.append([start, end])
    starts, ends = zip(*united, strict=True) if united else ((), ())
    return np.array(starts, np.uint64), np.array(ends, np.uint64)
