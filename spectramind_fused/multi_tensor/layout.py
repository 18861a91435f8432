"""Which memory layouts a walk in storage order may serve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PLAIN = {Tensor, torch.nn.Parameter}  # a subclass may hold more than its address shows


def is_plain(tensor: Tensor) -> bool:
    """Whether its address and strides say all of it."""
    return type(tensor) in PLAIN and tensor.layout is torch.strided


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each address once, in any order.

    True for contiguous, transposed and channels_last tensors; False for views with
    gaps and for expanded ones.
    """
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return tensor.numel() > 0


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether several elements lie at one address, because the tensor is expanded."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return False
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return any(stride == 0 and size > 1 for size, stride in pairs)


def has_memory(tensor: Tensor) -> bool:
    """Whether the storage reaches to the last element: `untyped_storage().resize_` may cut it.

    A tensor of zeros that torch has not made yet (`_efficientzerotensor`) has none.
    """
    if not tensor.numel() or tensor.device.type == "meta":
        return True
    if tensor._is_zerotensor():
        return False
    last = tensor.storage_offset() + _reach(tensor)
    return last * tensor.element_size() <= tensor.untyped_storage().nbytes()


def overlapping(tensors: Sequence[Tensor | None]) -> set[int]:
    """Which of the tensors, by position, reach into the memory of another one; None does not."""
    spans = sorted(
        (*_span(tensor), i)
        for i, tensor in enumerate(tensors)
        if tensor is not None and tensor.numel()
    )
    found: set[int] = set()
    reach, holder = 0, -1
    for first, last, i in spans:
        if first < reach:
            found |= {holder, i}
        if last > reach:
            reach, holder = last, i
    return found


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses from the first element to behind the last."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return 0, 0
    return tensor.data_ptr(), tensor.data_ptr() + _reach(tensor) * tensor.element_size()


def _reach(tensor: Tensor) -> int:
    """From the first element to behind the last, in elements."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in pairs)


def relaid(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns `tensor` with the strides of `like`: itself where it has them, else a copy.

    Also a copy of one that is negated only when it is read. What processes share stays shared.
    """
    if tensor.stride() == like.stride() and not tensor.is_neg():
        return tensor
    copy = torch.empty_strided(
        like.shape, like.stride(), dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)
    if copy.device.type == "cpu" and tensor.is_shared():  # type: ignore[no-untyped-call]
        copy.share_memory_()  # type: ignore[no-untyped-call]
    return copy
