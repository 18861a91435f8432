"""What a slot of a table may be stored in: plain dtypes, and those that take more to round to.

A plain `torch.dtype` is rounded to nearest even. A `Storage` draws random bits, or keeps something
beside; `csrc/storages.h` and `kernels/triton/storage.py` compute them, `stepping/rounding.py` in
plain torch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

GROUP = 32  # elements that share a scale
PIECE = 8192  # elements of which the norm makes a partial sum, and a split parameter a checksum

# Slow and averaged weights draw from streams of their own, wherever their slots are
# (`Stream` in csrc/random.h); a parameter and its states from those of their slots.
SLOW_STREAM, AVERAGE_STREAM = 14, 15


class Beside(NamedTuple):
    """What a storage keeps beside its own row.

    Attributes:
        dtype: of its values.
        elements: of the tensor, for which there is one value.
    """

    dtype: torch.dtype
    elements: int

    def size(self, elements: int) -> int:
        """How many values there are for so many elements."""
        return -(-elements // self.elements)


class Storage(NamedTuple):
    """One that is no plain dtype.

    Attributes:
        name: as the kernels know it.
        dtype: of its own row.
        beside: the rows beside it.
        random: whether it draws random bits.
    """

    name: str
    dtype: torch.dtype
    beside: tuple[Beside, ...] = ()
    random: bool = False


AnyStorage = torch.dtype | Storage

_SCALES = (Beside(torch.bfloat16, GROUP),)
_MASTER = (Beside(torch.float32, 1),)

STOCHASTIC = {
    torch.bfloat16: Storage("stochastic bfloat16", torch.bfloat16, random=True),
    torch.float16: Storage("stochastic float16", torch.float16, random=True),
}
SPLIT = Storage(
    "split bfloat16", torch.bfloat16, (Beside(torch.int16, 1), Beside(torch.int32, PIECE))
)
MASTER = {
    torch.bfloat16: Storage("master bfloat16", torch.bfloat16, _MASTER),
    torch.float16: Storage("master float16", torch.float16, _MASTER),
}
SIGNED8 = Storage("signed8", torch.int8, _SCALES, random=True)
UNSIGNED8 = Storage("unsigned8", torch.uint8, _SCALES, random=True)

# A product of two vectors, which is not written: the second moment of Adafactor. Beside one is the
# other, and how the tensor lies (multi_tensor/factoring.py), which no entry of a state holds.
FACTORED = Storage("factored", torch.float32, (Beside(torch.float32, 1), Beside(torch.int64, 1)))

# `Stored` in csrc/tables.h: each one's place is its number.
_PLAIN = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
_OTHERS = [*STOCHASTIC.values(), SPLIT, *MASTER.values(), SIGNED8, UNSIGNED8, FACTORED]
STORAGES: dict[AnyStorage, int] = dict(zip([*_PLAIN, *_OTHERS], range(12), strict=True))


def name_of(storage: AnyStorage) -> str:
    """As the kernels know it."""
    return storage.name if isinstance(storage, Storage) else str(storage).removeprefix("torch.")


def dtype_of(storage: AnyStorage) -> torch.dtype:
    """Of a slot's own row."""
    return storage.dtype if isinstance(storage, Storage) else storage


def beside_of(storage: AnyStorage) -> tuple[Beside, ...]:
    """The rows beside it."""
    return storage.beside if isinstance(storage, Storage) else ()


def computed_as(storage: AnyStorage) -> torch.dtype:
    """What a parameter is, to its rule: beside a master it is a float32."""
    return torch.float32 if beside_of(storage) else dtype_of(storage)


def is_random(storage: AnyStorage) -> bool:
    """Whether it draws random bits."""
    return isinstance(storage, Storage) and storage.random
