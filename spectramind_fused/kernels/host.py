"""What is known of a plan's tensors, recorded once and compared at every step by one C loop.

csrc/host reads parameters, gradients and states where CPython and torch keep them. Where it cannot,
`AskedFacts` asks the same questions in Python, which takes longer.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import sysconfig
from array import array
from collections.abc import MutableMapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from spectramind_fused.kernels import cpu
from spectramind_fused.kernels.native import HostAccess, HostFound, HostGiven, required
from spectramind_fused.kernels.tensor_layout import (
    UNKNOWN,
    slot_offset,
    tensor_layout,
    type_offset,
)
from spectramind_fused.multi_tensor import PLAIN

FITS, MOVED, MISSING, OTHERS, LOST, OVERLAP = map(int, HostFound)  # plain numbers: they are faster

# C calls these by their addresses: they must stay.
_is_neg, _storage, _bytes = Tensor.is_neg, Tensor.untyped_storage, torch.UntypedStorage.nbytes
_NAMES = ("grad", "_local_tensor", "_spec", "placements")


class Watched(NamedTuple):
    """What is to be known of one parameter.

    Attributes:
        grad: its gradient, or what is like it; None of a parameter that is to have none.
        state: of the parameter, or None.
        names: the entries of the state that are stepped with.
        splits: the placements of the parameter and of its gradient, where they are split.
        row: the address of an int64 that is to follow the address of the gradient.
        needed: bytes that the gradient's storage must have; 0 of an empty one, negative where
            they do not matter.
    """

    grad: Any
    state: dict[str, Any] | None
    names: Sequence[str]
    splits: list[Any] | None
    row: int
    needed: int


NOT_WATCHED = Watched(None, None, (), None, 0, 0)


class Facts:
    """Who is in the groups, and where and how everything lies that a step reads and writes.

    Of parameters and states also the addresses; those of gradients are written down.

    Attributes:
        has_grad: for each parameter whether it had a gradient when they were last compared.
    """

    def __init__(
        self,
        groups: list[list[Tensor]],
        state: MutableMapping[Tensor, Any],
        watched: list[Watched],
        has_grad: list[bool],
    ) -> None:
        """Records them; `can_be_read` must have said that it can.

        Args:
            groups: the parameters of each group.
            state: of the optimizer.
            watched: of each parameter, in the order of the groups.
            has_grad: likewise, whether it has a gradient now.

        Raises:
            RuntimeError, BufferError: a tensor has no memory that can be read, or no strides.
        """
        self.has_grad = bytearray([*has_grad, False])  # never empty
        self._access = _access(_dtensor(), *_slots(groups))
        names = {of_one.names: list(of_one.names) for of_one in watched}
        # C knows everything by its address: this keeps it there.
        self._kept: Any = (
            [of_one.grad for of_one in watched],
            [of_one.state for of_one in watched],
            [names[of_one.names] for of_one in watched],
            [of_one.splits for of_one in watched],
            list(map(list, groups)),
            dict(state),
        )
        grads, states, names_of, splits = self._kept[:4]
        rows = array("q", [of_one.row for of_one in watched])
        needed = array("q", [of_one.needed for of_one in watched])
        given = HostGiven(
            *map(id, (groups, state, grads, states, names_of, splits)),
            rows.buffer_info()[0],
            needed.buffer_info()[0],
        )
        self._words = _recorded(self._access, given)
        self._at = self._words.buffer_info()[0]
        self._has_grad_at = ctypes.addressof(ctypes.c_char.from_buffer(self.has_grad))
        self._kept[0].clear()  # of gradients nothing was recorded but how they lie

    def compare(
        self,
        groups: list[list[Tensor]],
        state: MutableMapping[Tensor, Any],
        overlaps: bool,
    ) -> int:
        """What became of them.

        Args:
            groups: the parameters of each group, in lists.
            state: of the optimizer.
            overlaps: whether it matters that gradients share memory.

        Returns:
            0 where anything differs, else FITS and what else is so. MOVED: a gradient has another
            address than was written down, which now is there; MISSING: a parameter has none;
            OTHERS: others have one than when they were last compared; LOST: a gradient has no
            memory, or not enough; OVERLAP: one has moved, and some share memory.

        Raises:
            RuntimeError, BufferError, AttributeError: a tensor cannot be read.
        """
        found: int = _library().spectramind_compare(
            self._access,
            groups,
            state,
            self._at,
            self._has_grad_at,
            overlaps,
        )
        return found


def can_be_read(groups: list[Any], states: list[Any], tensors: list[Any]) -> bool:
    """Whether C reads these: lists and dicts, and tensors of which it knows the class.

    Args:
        groups: the parameters of each group.
        states: of the optimizer, and of its parameters; None of those that have none.
        tensors: parameters, their states and gradients.
    """
    dicts = all(state is None or isinstance(state, dict) for state in states)
    if _access(_dtensor(), -1, -1) is None or not dicts or {*map(type, groups)} - {list}:
        return False
    split = [t for t in tensors if type(t) not in PLAIN]
    if any(type(tensor) is not _dtensor() for tensor in split):
        return False
    return PLAIN.issuperset(type(tensor._local_tensor) for tensor in split)


def mark_written(tensors: list[Tensor], gradients: bool = False) -> None:
    """Tells autograd that tensors are written to, as `increment_version` of torch does.

    Args:
        tensors: these.
        gradients: it is the gradients of these, those that there are.
    """
    access = _access(_dtensor(), -1, -1)
    marked = _library().spectramind_mark(access, tensors, gradients) if access is not None else 0
    rest = tensors[marked:]
    if rest:
        grads = (tensor.grad for tensor in rest)
        torch.autograd.graph.increment_version(
            [grad for grad in grads if grad is not None] if gradients else rest
        )


def _recorded(access: Any, given: HostGiven) -> array[int]:
    words = _library().spectramind_record(access, ctypes.byref(given), None, 0)
    if words < 0:
        raise RuntimeError("An entry of a state is missing.")
    facts = array("q", bytes(8 * words))
    at, room = facts.buffer_info()
    _library().spectramind_record(access, ctypes.byref(given), at, room)
    return facts


class AskedFacts:
    """Dtype, device, shape, strides and negative bit of tensors, and addresses of the first ones.

    Strides that no element depends on may be left out. Behind the first ones, None may stand for a
    tensor: of it nothing is asked.
    """

    def __init__(self, tensors: list[Tensor], lasting: int) -> None:
        """Records them.

        Args:
            tensors: strided ones.
            lasting: for how many tensors, from the first on, the address is recorded.

        Raises:
            RuntimeError: one has no memory that can be read, or no strides.
        """
        self._lasting = lasting
        self._types = list(map(type, tensors))
        self._held = _asked(tensors, lasting)

    def hold(self, tensors: list[Any]) -> bool:
        """Whether they are true of these tensors, where one is there.

        Raises:
            RuntimeError: as above.
        """
        types = list(map(type, tensors))
        if types != self._types and not self._same_types(types):
            return False
        return all(map(agree, _asked(tensors, self._lasting), self._held))

    def _same_types(self, types: list[type]) -> bool:
        if len(types) != len(self._types) or types[: self._lasting] != self._types[: self._lasting]:
            return False
        pairs = zip(types[self._lasting :], self._types[self._lasting :], strict=True)
        return all(got is want or got is NoneType for got, want in pairs)


def agree(found: Any, known: Any) -> bool:
    """Whether it is as it was, where anything is there at all."""
    return found is None or bool(found == known)


def _asked(tensors: list[Any], lasting: int) -> list[Any]:
    return [
        None if tensor is None else _asked_of(tensor, lasts=i < lasting)
        for i, tensor in enumerate(tensors)
    ]


def _asked_of(tensor: Tensor, lasts: bool) -> tuple[Any, ...]:
    return (
        tensor.data_ptr() if lasts else 0,
        tensor.is_contiguous() or tensor.stride(),
        tensor.size(),
        tensor.dtype,
        tensor.device,
        tensor.is_neg(),
    )


class _ExchangeTable(ctypes.Structure):
    """`DLPackExchangeAPI` of dlpack.h, version 1."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in ("previous", "allocator", "from_object", "to_object",
                                               "describe", "stream")),
    ]  # fmt: skip


@functools.cache
def _access(dtensor: type | None, local_at: int, spec_at: int) -> Any:
    """How C reads Python's objects and torch's tensors; None where it cannot.

    Args:
        dtensor: the class of tensors that are split; None: there are none.
        local_at: where one has its local part; -1 where that is not known.
        spec_at: likewise how it is split.
    """
    describe, type_at = _describe(), type_offset()
    # Without the interpreter's lock another thread may change a list while it is read.
    free = sysconfig.get_config_var("Py_GIL_DISABLED")
    if describe is None or type_at is None or free or cpu._load()[0] is None:
        return None
    python = ctypes.pythonapi
    functions = (
        python.PyList_GetItem, python.PyList_Size, python.PyDict_Next, python.PyDict_Size,
        python.PyDict_GetItemWithError, python.PyObject_GetAttr, python.PyObject_VectorcallDict,
        python.PyObject_RichCompareBool, python.PyLong_AsLongLong,
        python.Py_DecRef,
    )  # fmt: skip
    objects = (_is_neg, _storage, _bytes, None, False, *_NAMES, Tensor, Parameter)
    access = HostAccess(
        *(ctypes.cast(function, ctypes.c_void_p) for function in functions),
        describe,
        *map(id, objects),
        None if dtensor is None else id(dtensor),
        type_at,
        local_at,
        spec_at,
        *(tensor_layout() or UNKNOWN),
    )
    return ctypes.byref(access)


def _describe() -> Any:
    """The address of torch's function that fills a DLTensor in; None where there is none."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    read = prototype(("PyCapsule_GetPointer", ctypes.pythonapi))
    address = read(capsule, b"dlpack_exchange_api")
    if address is None:
        return None
    table = ctypes.cast(address, ctypes.POINTER(_ExchangeTable)).contents
    return table.describe if table.major == 1 else None


def _slots(groups: list[list[Tensor]]) -> tuple[int, int]:
    """Where tensors that are split have their local part, and how they are split."""
    split = [p for group in groups for p in group if type(p) is _dtensor()][:8]
    if not split:
        return -1, -1
    return slot_offset(split, "_local_tensor"), slot_offset(split, "_spec")


def _dtensor() -> type | None:
    """The class of tensors that are split over ranks; None where nobody has imported it yet."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


@functools.cache
def _library() -> ctypes.PyDLL:
    """The library once more: these functions keep the interpreter's lock, and may raise."""
    required(cpu._load())
    library = ctypes.PyDLL(str(cpu._LIBRARY))
    pointer, py_object = ctypes.c_void_p, ctypes.py_object
    library.spectramind_record.argtypes = [pointer, pointer, pointer, ctypes.c_int64]
    library.spectramind_compare.argtypes = [
        pointer, py_object, py_object, pointer, pointer, ctypes.c_int64
    ]  # fmt: skip
    library.spectramind_mark.argtypes = [pointer, py_object, ctypes.c_int64]
    for function in ("record", "compare", "mark"):
        getattr(library, f"spectramind_{function}").restype = ctypes.c_int64
    return library
