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
_OWN_DIMENSIONS = 5  # whose sizes and strides torch keeps inside a tensor
# How far to look: to the ends of these objects, and in a counter to that of its number.
_TENSOR_BYTES, _STORAGE_BYTES, _META_BYTES, _COUNTER_BYTES = 224, 128, 80, 32


class TensorLayout(NamedTuple):
    """Offsets in bytes.

    Attributes:
        tensor_at: in a Python tensor, of the address of torch's own.
        keys_at: in torch's own, of its dispatch keys.
        negated: the bit among them of a tensor that is negated only when it is read.
        storage_at: in torch's own, of the address of its storage; before the keys.
        data_at: in a storage, of the address of its memory; in the next two words is who frees it.
        bytes_at: in a storage, of its size.
        deleter_at: in a storage, of the function that frees its memory.
        object_at: in torch's own, of the address of Python's.
        sizes_at: in torch's own, of where it begins to say how it is read; before the keys.
        meta_at: in torch's own, of the address of what autograd knows of it, or 0.
        grad_at: there, of the address of torch's own gradient.
        no_grad: what stands there when there is no gradient.
        version_at: in torch's own, of the address of its counter of writes, or 0.
        count_at: in a counter, of the number, of 32 bits.
    """

    tensor_at: int
    keys_at: int
    negated: int
    storage_at: int
    data_at: int
    bytes_at: int
    deleter_at: int
    object_at: int
    sizes_at: int
    meta_at: int
    grad_at: int
    no_grad: int
    version_at: int
    count_at: int


UNKNOWN = TensorLayout(*(-1,) * 14)


@functools.cache
def tensor_layout() -> TensorLayout | None:
    """The layout of this torch's tensors; None where it is not as expected."""
    try:
        # Modes are such as one that makes every tensor a fake.
        with _disable_current_modes(), torch.inference_mode(False):
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
    """As above, or an error of whatever kind."""
    dispatch = torch._C.DispatchKey.Negative  # type: ignore[attr-defined]
    negated = torch._C.DispatchKeySet(dispatch).raw_repr()  # type: ignore[attr-defined]
    if any(bool(_keys(t) & negated) != t.is_neg() for t in samples):
        return None
    tensor_at = _found_at(samples, Tensor.__basicsize__, id, _tensor)
    keys_at = _found_at(samples, _TENSOR_BYTES, _tensor, _keys)
    storage_at = _found_at(samples, _TENSOR_BYTES, _tensor, _storage)
    data_at = _found_at(samples, _STORAGE_BYTES, _storage, lambda t: t.untyped_storage().data_ptr())
    bytes_at = _found_at(samples, _STORAGE_BYTES, _storage, lambda t: t.untyped_storage().nbytes())
    object_at = _found_at(samples, _TENSOR_BYTES, _tensor, id)
    sizes_at, deleter_at = _sizes(samples), _deleter(samples, data_at)
    # Between these two, torch's own tensor has nothing but addresses.
    links = range(storage_at + _WORD, object_at, _WORD)
    layout = TensorLayout(
        tensor_at, keys_at, negated, storage_at, data_at, bytes_at,
        deleter_at, object_at, sizes_at, *_meta(links), *_counter(links),
    )  # fmt: skip
    ordered = storage_at < object_at < sizes_at < keys_at
    known = ordered and _shows_every_change(layout)
    return layout if known and _shows_every_gradient(layout) and _counts(layout) else None


def _sizes(samples: list[Tensor]) -> int:
    """Where torch's own tensor has the number of its dimensions, their sizes and strides."""

    def there(tensor: Tensor, offset: int) -> list[int]:
        at = _tensor(tensor) + offset
        sizes, strides = at + _WORD, at + _WORD * (1 + _OWN_DIMENSIONS)
        return [_word(at), *_words(sizes, tensor.dim()), *_words(strides, tensor.dim())]

    for offset in range(0, _TENSOR_BYTES, _WORD):
        if all(there(t, offset) == [t.dim(), *t.shape, *t.stride()] for t in samples):
            return offset
    raise LookupError("no sizes")


def _deleter(samples: list[Tensor], data_at: int) -> int:
    """Of the two words behind the address of the memory the one that all storages have alike."""
    (alike,) = (
        offset
        for offset in (data_at + _WORD, data_at + 2 * _WORD)
        if len({_word(_storage(tensor) + offset) for tensor in samples if tensor.numel()}) == 1
    )
    return alike


def _meta(links: range) -> tuple[int, int, int]:
    """Where a tensor has what autograd knows of it, where that has the gradient, and what if none.

    A tensor has it from when it first requires a gradient.
    """
    before, tensors = _links_of_new(links)
    for tensor in tensors:
        tensor.requires_grad_()
    (meta_at,) = (
        at
        for i, at in enumerate(links)
        if not any(row[i] for row in before) and all(_word(_tensor(t) + at) for t in tensors)
    )

    def meta(tensor: Tensor) -> int:
        return _word(_tensor(tensor) + meta_at)

    empty = [[_word(meta(t) + at) for at in range(0, _META_BYTES, _WORD)] for t in tensors]
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor)
    grad_at = _found_at(tensors, _META_BYTES, meta, lambda tensor: _tensor(tensor.grad))
    (no_grad,) = {row[grad_at // _WORD] for row in empty}
    return meta_at, grad_at, no_grad


def _counter(links: range) -> tuple[int, int]:
    """Where a tensor has its counter, and where that has the number."""
    _, tensors = _links_of_new(links)
    for i, tensor in enumerate(tensors):
        torch.autograd.graph.increment_version([tensor] * (1237 + 331 * i))
    for at in links:
        if all(_word(_tensor(tensor) + at) for tensor in tensors):
            for count_at in range(0, _COUNTER_BYTES, 4):
                if all(_count(t, at, count_at).value == t._version for t in tensors):
                    return at, count_at
    raise LookupError("no counter")


def _links_of_new(links: range) -> tuple[list[list[int]], list[Tensor]]:
    tensors = [torch.zeros(3 + i, device="cpu") for i in range(4)]
    return [[_word(_tensor(tensor) + at) for at in links] for tensor in tensors], tensors


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
        tensor = torch.zeros(5, 4, dtype=torch.float32, device="cpu")[1:4]
        held, lay, facts = tensor.data, _lies(tensor, layout), _facts(tensor)
        read, begins = _read(tensor, layout), tensor.data_ptr() - _data(tensor, layout)
        change(tensor)
        if _lies(tensor, layout) == lay:
            return False
        if _read(tensor, layout) == read and (
            _facts(tensor) != facts or tensor.data_ptr() - _data(tensor, layout) != begins
        ):
            return False
        del held  # whose memory another might have had until now
    if not _shows_lazy_copies(layout):
        return False
    many = torch.zeros(2, 3, 1, 2, 2, device="cpu")  # as many dimensions as csrc/host believes in
    before = _read(many, layout)
    if _read(many.transpose_(0, 4), layout) == before:
        return False
    return _kind(torch.zeros(3, device="cpu"), layout) != _kind(
        torch.zeros(3, device="meta"), layout
    )


def _shows_lazy_copies(layout: TensorLayout) -> bool:
    """Of a tensor that shares its memory with one until either is written to."""
    tensor = torch.zeros(3, device="cpu")
    lay, read = _lies(tensor, layout), _read(tensor, layout)
    copy = tensor._lazy_clone()
    return lay != _lies(tensor, layout) and read not in (_read(tensor, layout), _read(copy, layout))


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.is_neg()


def _lies(tensor: Tensor, layout: TensorLayout) -> list[int]:
    """What csrc/host compares of parameters and states."""
    of_storage = _words(_storage_of(tensor, layout) + layout.data_at, 3)
    return [*of_storage, *_to_keys(tensor, layout, layout.storage_at)]


def _read(tensor: Tensor, layout: TensorLayout) -> list[int]:
    """What it compares of gradients; what is behind the last size was never written."""
    own = _to_keys(tensor, layout, layout.sizes_at)
    strides = own[1 + _OWN_DIMENSIONS :][: tensor.dim()]
    *others, _, keys = own[1 + 2 * _OWN_DIMENSIONS :]
    sizes, kind = own[: 1 + tensor.dim()], _kind(tensor, layout)
    deleter = _word(_storage_of(tensor, layout) + layout.deleter_at)
    return [deleter, *sizes, *strides, *others, kind, keys]


def _to_keys(tensor: Tensor, layout: TensorLayout, first: int) -> list[int]:
    """The words of torch's own, from an offset to the keys."""
    return _words(_tensor(tensor) + first, (layout.keys_at - first) // _WORD + 1)


def _storage_of(tensor: Tensor, layout: TensorLayout) -> int:
    return _word(_tensor(tensor) + layout.storage_at)


def _kind(tensor: Tensor, layout: TensorLayout) -> int:
    """Dtype and device, without the flags that follow."""
    return _word(_tensor(tensor) + layout.keys_at - _WORD) & (1 << 40) - 1


def _data(tensor: Tensor, layout: TensorLayout) -> int:
    return _word(_storage_of(tensor, layout) + layout.data_at)


def _shows_every_gradient(layout: TensorLayout) -> bool:
    """Whether the gradient that is read is the one that Python is given, whoever set it."""

    def alike(param: Tensor) -> bool:
        found = _word(_word(_tensor(param) + layout.meta_at) + layout.grad_at)
        return found == (layout.no_grad if param.grad is None else _tensor(param.grad))

    param = torch.nn.Parameter(torch.zeros(3, device="cpu"))
    seen = [alike(param)]
    for grad in (torch.zeros(3, device="cpu"), None, torch.ones(3, device="cpu")):
        param.grad = grad
        del grad
        seen.append(alike(param))
    del param.grad
    return all([*seen, alike(param)])


def _counts(layout: TensorLayout) -> bool:
    """Whether writing to the counter is what torch reads, and one of inference mode has none."""
    tensor = torch.zeros(3, device="cpu")
    view, before = tensor[1:], tensor._version
    _count(tensor, layout.version_at, layout.count_at).value += 1
    with torch.inference_mode():
        counts_none = torch.zeros(3, device="cpu")
    at = _word(_tensor(counts_none) + layout.version_at)
    return not at and view._version == tensor._version == before + 1


def _count(tensor: Tensor, version_at: int, count_at: int) -> ctypes.c_uint32:
    return ctypes.c_uint32.from_address(_word(_tensor(tensor) + version_at) + count_at)


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


def _found_at(*args: Any) -> int:
    """As above; where it is nowhere, an error."""
    offset = _offset(*args)
    if offset is None:
        raise LookupError("not found")
    return offset


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def _words(address: int, count: int) -> list[int]:
    return [_word(address + _WORD * i) for i in range(count)]
