"""Parameters that lie in parts on several ranks (DTensor): this rank's part, sums over all."""

from __future__ import annotations

import functools
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import PLAIN
from spectramind_fused.stepping.rounding import Place

_PLAIN_OR_NONE = {*PLAIN, NoneType}


def is_dtensor(tensor: Tensor) -> bool:
    """Whether `tensor` is a part of a larger one, or a replica."""
    return type(tensor) not in PLAIN and isinstance(tensor, _dtensor())


def local(tensor: Any) -> Any:
    """This rank's part of a DTensor; anything else itself."""
    return tensor._local_tensor if is_dtensor(tensor) else tensor


def locals_of(tensors: list[Any]) -> list[Any]:
    """This rank's parts; the list itself where all are plain tensors, or None."""
    return tensors if _PLAIN_OR_NONE.issuperset(map(type, tensors)) else list(map(local, tensors))


def is_split(placement: Any) -> bool:
    """Whether ranks have different parts along a dimension of the mesh.

    FSDP2 over a tensor parallel dimension has parts of parts, of which `is_shard` says no.
    """
    return bool(placement.is_shard()) or type(placement).__name__ == "_StridedShard"


def same_sharding(tensor: Any, like: Any) -> bool:
    """Whether each rank holds the same elements of two tensors; of plain ones it holds all."""
    if not is_dtensor(like):
        return not is_dtensor(tensor)
    return (
        is_dtensor(tensor)
        and tensor.device_mesh == like.device_mesh
        and tensor.placements == like.placements
        and tensor.shape == like.shape
    )


def whole(tensor: Any) -> Tensor:
    """All of a DTensor, on every rank; all of them must call this. A plain tensor itself."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[no-any-return]


def split_like(tensor: Tensor, like: Any) -> Tensor:
    """What every rank has the whole of, in the parts of another tensor."""
    if not is_dtensor(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    replicas = [Replicate()] * like.device_mesh.ndim
    made = DTensor.from_local(tensor, like.device_mesh, replicas)
    return made.redistribute(placements=like.placements)  # type: ignore[no-any-return]


def splits_matrices(tensor: Any) -> bool:
    """Whether a rank has only parts of matrices, which are the last two dimensions."""
    last = tensor.dim() - 2
    return is_dtensor(tensor) and any(is_split(p) and p.dim >= last for p in tensor.placements)


class Sharding(NamedTuple):
    """Over which ranks a tensor is split.

    Attributes:
        mesh: the ranks; None for a plain tensor, which is whole.
        split: for each dimension of the mesh, whether parts (else replicas) lie along it.
    """

    mesh: Any
    split: tuple[bool, ...]

    @classmethod
    def of(cls, tensor: Any) -> Sharding:
        """How `tensor` is split. A partial one counts as a replica: `summed` makes it whole."""
        if not is_dtensor(tensor):
            return cls(None, ())
        return cls(tensor.device_mesh, tuple(map(is_split, tensor.placements)))

    def total(self, share: Tensor) -> Tensor:
        """The sum of `share` over the ranks that hold other parts; all of them must call this."""
        if self.mesh is None:
            return share
        from torch.distributed.tensor import DTensor, Partial, Replicate

        placements = [Partial() if split else Replicate() for split in self.split]
        return DTensor.from_local(share, self.mesh, placements).full_tensor()  # type: ignore[no-any-return]


def place_of(param: Any, number: int) -> Place:
    """Where this rank's elements are in a parameter, the optimizer's `number`-th.

    Of one that is split along several dimensions beside its first the elements count from the first
    that this rank has.
    """
    if not is_dtensor(param):
        return Place(number, 0, max(1, param.numel()), 0)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, begin = compute_local_shape_and_global_offset(
        param.shape, param.device_mesh, param.placements
    )
    whole = list(param.shape)
    inner = [torch.Size(whole[d + 1 :]).numel() for d in range(len(whole))]
    offset = sum(first * size for first, size in zip(begin, inner, strict=True))
    split = [d for d in range(1, len(whole)) if shape[d] != whole[d]]
    if len(split) != 1:
        return Place(number, offset, max(1, torch.Size(shape).numel()), 0)
    (d,) = split
    return Place(number, offset, max(1, shape[d] * inner[d]), whole[d] * inner[d])


def summed(grad: Any) -> Tensor:
    """This rank's part of a gradient whose values are final."""
    if is_dtensor(grad) and any(p.is_partial() for p in grad.placements):
        from torch.distributed.tensor import Replicate

        whole = [Replicate() if p.is_partial() else p for p in grad.placements]
        grad = grad.redistribute(placements=whole)
    return local(grad)  # type: ignore[no-any-return]


@functools.cache
def _dtensor() -> tuple[type, ...]:
    if not torch.distributed.is_available():
        return ()
    from torch.distributed.tensor import DTensor

    return (DTensor,)
