"""Where tensors lie and how: facts that are recorded once and compared at every step.

Through csrc/host, one C loop over what torch says of each tensor by DLPack. Where that cannot be
had, by the same questions asked in Python, which takes longer.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from types import NoneType
from typing import Any

from torch import Tensor

from spectramind_fused.kernels import cpu
from spectramind_fused.kernels.native import required
from spectramind_fused.multi_tensor import PLAIN

_is_neg = Tensor.is_neg  # C calls it by its address: it must stay


class Facts:
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
            RuntimeError, BufferError: one has no memory that can be read, or no strides.
        """
        self._lasting = lasting
        self._types = list(map(type, tensors))
        self._in_c = _access() is not None and PLAIN.issuperset(self._types)
        try:
            held = _recorded(tensors, lasting) if self._in_c else None
        except (RuntimeError, BufferError):  # of a device that DLPack has no number for
            self._in_c = False
        self._held: Any = held if self._in_c else _asked(tensors, lasting)

    def hold(self, tensors: list[Any]) -> bool:
        """Whether they are true of these tensors, where one is there.

        Raises:
            RuntimeError, BufferError: as above.
        """
        types = list(map(type, tensors))
        if types != self._types and not self._same_types(types):
            return False
        if self._in_c:
            return _same(tensors, self._lasting, self._held)
        asked = _asked(tensors, self._lasting)
        return all(map(_agree, asked, self._held))

    def _same_types(self, types: list[type]) -> bool:
        lasting, known = self._lasting, set(self._types[self._lasting :])
        if len(types) != len(self._types) or types[:lasting] != self._types[:lasting]:
            return False
        if len(known) == 1:  # as nearly always
            return {*known, NoneType}.issuperset(types[lasting:])
        pairs = zip(types[lasting:], self._types[lasting:], strict=True)
        return all(got is want or got is NoneType for got, want in pairs)


def _agree(asked: Any, held: Any) -> bool:
    return asked is None or asked == held


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


def _recorded(tensors: list[Tensor], lasting: int) -> array[int]:
    words = _record(tensors, lasting, array("q"))
    facts = array("q", bytes(8 * words))
    _record(tensors, lasting, facts)
    return facts


def _record(tensors: list[Tensor], lasting: int, into: array[int]) -> int:
    at, room = into.buffer_info()
    written: int = _library().spectramind_record_facts(
        _access(), tensors, len(tensors), lasting, at, room
    )
    return written


def _same(tensors: list[Any], lasting: int, facts: array[int]) -> bool:
    at, words = facts.buffer_info()
    found: int = _library().spectramind_same_facts(
        _access(), tensors, len(tensors), lasting, at, words
    )
    return found == 1


class _Access(ctypes.Structure):
    """`struct Access` of csrc/host/facts.cpp."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            "list_item",
            "describe",
            "call",
            "release",
            "is_neg",
            "false_object",
            "none",
        )
    ]


class _ExchangeTable(ctypes.Structure):
    """`DLPackExchangeAPI` of dlpack.h, version 1."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in ("previous", "allocator", "from_object", "to_object",
                                               "describe", "stream")),
    ]  # fmt: skip


@functools.cache
def _access() -> Any:
    """How C reads tensors; None where it cannot."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None or cpu._load()[0] is None:
        return None
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    read = prototype(("PyCapsule_GetPointer", ctypes.pythonapi))
    address = read(capsule, b"dlpack_exchange_api")
    if address is None:
        return None
    table = ctypes.cast(address, ctypes.POINTER(_ExchangeTable)).contents
    if table.major != 1 or not table.describe:
        return None
    python = ctypes.pythonapi
    list_item, call, release = (
        ctypes.cast(function, ctypes.c_void_p)
        for function in (python.PyList_GetItem, python.PyObject_CallOneArg, python.Py_DecRef)
    )
    access = _Access(list_item, table.describe, call, release, id(_is_neg), id(False), id(None))
    return ctypes.byref(access)


@functools.cache
def _library() -> ctypes.PyDLL:
    """The library once more: these functions keep the interpreter's lock, and may raise."""
    required(cpu._load())
    library = ctypes.PyDLL(str(cpu._LIBRARY))
    arguments = [
        ctypes.c_void_p, ctypes.py_object, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        ctypes.c_int64,
    ]  # fmt: skip
    for name in ("spectramind_record_facts", "spectramind_same_facts"):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int64
    return library
