"""Bytes that `update` moves for slots in any storages, by formula."""

from __future__ import annotations

from collections.abc import Sequence

from spectramind_fused.bench.traffic import OVERWRITING, Traffic
from spectramind_fused.multi_tensor.storages import GROUP, AnyStorage, beside_of, dtype_of


def of_stored(
    storages: Sequence[AnyStorage], *, rule: str = "", zero_grads: bool = False
) -> Traffic:
    """Bytes per parameter of our `update`, for slots in any storages, on a step that syncs.

    A thread that holds four elements reads the scale of their group, and writes it; most of these
    accesses find it in the cache.

    Args:
        storages: of the parameter, the gradient, the step counter, the states and the weights.
        rule: the kernels' name of it, where it may be one that overwrites parameters.
        zero_grads: whether zeros are left in the gradient.
    """
    param, gradient, _, *others = storages
    both = sum(map(_bytes_each_way, (param, *others)))
    size = dtype_of(gradient).itemsize
    unread = _bytes_each_way(param) if rule in OVERWRITING else 0
    return Traffic(both - unread + size, both + size * zero_grads)


def _bytes_each_way(storage: AnyStorage) -> float:
    """Of a split parameter's checksum there is a few bytes in a piece."""
    each = {1: 1, GROUP: 4}  # elements that a thread has when it looks at one value beside them
    beside = (row for row in beside_of(storage) if row.elements in each)
    return dtype_of(storage).itemsize + sum(
        row.dtype.itemsize / each[row.elements] for row in beside
    )
