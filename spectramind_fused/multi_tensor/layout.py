"""Which memory layouts a walk in storage order may serve."""

from __future__ import annotations

import torch
from torch import Tensor


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


def relaid(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns `tensor` with the strides of `like`: itself where it has them, else a copy."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_strided(
        like.shape, like.stride(), dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)
