"""Where torch keeps what DLPack does not tell of a tensor, found by looking for it in memory.

Asking torch's own methods takes longer than all the rest of a look at a tensor. Where nothing is
found, because a torch lays its tensors out otherwise, they are asked.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

_WORD = 8
_TENSOR_BYTES, _STORAGE_BYTES = 224, 128  # how far to look: to the ends of these objects


class TensorLayout(NamedTuple):
    """Offsets in bytes.

    Attributes:
        tensor_at: in a Python tensor, of the address of torch's own.
        keys_at: in torch's own, of its dispatch keys.
        negated: the bit among them of a tensor that is negated only when it is read.
        storage_at: in torch's own, of the address of its storage; before the keys.
        data_at: in a storage, of the address of its memory.
        bytes_at: in a storage, of its size.
    """

    tensor_at: int
    keys_at: int
    negated: int
    storage_at: int
    data_at: int
    bytes_at: int


@functools.cache
def tensor_layout() -> TensorLayout | None:
    """The layout of this torch's tensors; None where it is not as expected."""
    try:
        with _disable_current_modes():  # such as one that makes every tensor a fake
            return _found(_samples())
    except Exception:  # whatever a torch raises that has none of these functions
        return None


@functools.cache
def type_offset() -> int | None:
    """Where a Python object has its type; None where it is not found."""
    samples: list[Any] = [(), "text", {}, torch.nn.Linear, 3.0, type_offset]
    return _offset(samples, 4 * _WORD, id, lambda value: id(type(value)))


def slot_offset(objects: list[Any], name: str) -> int:
    """Where all objects, of one class, have an attribute that is a slot; -1 where it is not found.

    Args:
        objects: one at least, without slots that have not been set.
        name: of the attribute.
    """
    size = type(objects[0]).__basicsize__
    found = _offset(objects, size, id, lambda each: id(getattr(each, name)))
    return -1 if found is None else found


def _samples() -> list[Tensor]:
    """Tensors that differ in all that is looked for."""
    plain = torch.zeros(1237, dtype=torch.float32, device="cpu")
    whole = torch.zeros(7, 5, dtype=torch.int64, device="cpu")
    return [
        plain,
        plain[3:],
        torch._neg_view(torch.zeros(59, dtype=torch.bfloat16, device="cpu")),
        torch.nn.Parameter(torch.zeros(331, dtype=torch.float64, device="cpu")),
        torch.nn.Parameter(torch.zeros(0, device="cpu")),
        whole.t(),
        torch.zeros((), dtype=torch.bool, device="cpu"),
    ]


def _found(samples: list[Tensor]) -> TensorLayout | None:
    dispatch = torch._C.DispatchKey.Negative  # type: ignore[attr-defined]
    negated = torch._C.DispatchKeySet(dispatch).raw_repr()  # type: ignore[attr-defined]
    if any(bool(_keys(t) & negated) != t.is_neg() for t in samples):
        return None
    tensor_at = _offset(samples, Tensor.__basicsize__, id, _tensor)
    keys_at = _offset(samples, _TENSOR_BYTES, _tensor, _keys)
    storage_at = _offset(samples, _TENSOR_BYTES, _tensor, _storage)
    bytes_at = _offset(samples, _STORAGE_BYTES, _storage, lambda t: t.untyped_storage().nbytes())
    data_at = _offset(samples, _STORAGE_BYTES, _storage, lambda t: t.untyped_storage().data_ptr())
    if None in (tensor_at, keys_at, storage_at, data_at, bytes_at):
        return None
    found = TensorLayout(tensor_at, keys_at, negated, storage_at, data_at, bytes_at)  # type: ignore[arg-type]
    return found if _shows_every_change(found) else None


def _shows_every_change(layout: TensorLayout) -> bool:
    """Whether something is seen of everything that torch can do to a tensor in its place."""
    for change in (
        lambda t: t.t_(),
        lambda t: t.set_(t.view(4, 3)),
        lambda t: t.set_(t.untyped_storage(), 1, (2, 2), (3, 1)),
        lambda t: t.unsqueeze_(0),
        lambda t: t.resize_(2, 3),
        lambda t: t.resize_(9, 9),
        lambda t: t.as_strided_((3, 4), (2, 1)),
        lambda t: t.as_strided_((3, 4), (4, 1), 1),
        lambda t: t.untyped_storage().resize_(0),
        lambda t: setattr(t, "data", t.data.clone()),
        lambda t: setattr(t, "data", t.data[1:]),
        lambda t: setattr(t, "data", t.data.flatten()),
        lambda t: setattr(t, "data", t.data.view(torch.int32)),
        lambda t: setattr(t, "data", torch._neg_view(t.data)),
        lambda t: setattr(t, "data", t.data.to(torch.float64)),
        lambda t: torch.utils.swap_tensors(t, torch.zeros(3, 4, device="cpu")),  # type: ignore[no-untyped-call]
    ):
        tensor = torch.zeros(5, 4, device="cpu")[1:4]
        before, held = _insides(tensor, layout), tensor.data
        change(tensor)
        if _insides(tensor, layout) == before:
            return False
        del held  # whose memory another might have had until now
    many = torch.zeros(2, 3, 1, 2, 2, device="cpu")  # as many dimensions as csrc/host believes in
    before = _insides(many, layout)
    return _insides(many.transpose_(0, 4), layout) != before


def _insides(tensor: Tensor, layout: TensorLayout) -> list[int]:
    """What csrc/host/facts.cpp compares."""
    at = _word(id(tensor) + layout.tensor_at)
    words = range(layout.storage_at, layout.keys_at + _WORD, _WORD)
    storage = _word(at + layout.storage_at)
    return [*(_word(at + word) for word in words), _word(storage + layout.data_at)]


def _tensor(tensor: Tensor) -> int:
    return int(tensor._cdata)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _keys(tensor: Tensor) -> int:
    return int(torch._C._dispatch_keys(tensor).raw_repr())  # type: ignore[attr-defined]


def _offset(
    samples: list[Any],
    size: int,
    begin: Callable[[Any], int],
    wanted: Callable[[Any], int],
) -> int | None:
    """The first offset, below `size`, at which every sample has what is wanted."""
    for offset in range(0, size, _WORD):
        if all(_word(begin(sample) + offset) == wanted(sample) for sample in samples):
            return offset
    return None


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value
