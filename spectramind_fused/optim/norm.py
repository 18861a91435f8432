"""The total norm of an optimizer's gradients: over buckets, devices, eager tensors and ranks."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import Reduction


class NormPass:
    """Where the partial sums of every bucket go, and how they come together.

    Attributes:
        reductions: one for each device that kernels serve.
        first_rows: for each bucket, the row of its first chunk.
    """

    def __init__(self, chunks: list[tuple[torch.device, int]]) -> None:
        self.first_rows = []
        rows: dict[torch.device, int] = {}
        for device, count in chunks:
            self.first_rows.append(rows.get(device, 0))
            rows[device] = rows.get(device, 0) + count
        self.reductions = {device: Reduction(count, device) for device, count in rows.items()}

    def combine(self, eager: list[Tensor]) -> Tensor | None:
        """Tells every device about the gradients elsewhere, after the kernels' norm pass.

        Args:
            eager: gradients that no kernel serves.

        Returns:
            What `squares` returns, for all gradients; None where no gradient is eager.
        """
        if len(self.reductions) < 2 and not eager:
            return None
        sums = [reduction.partials[:-1].sum(0) for reduction in self.reductions.values()]
        if eager:
            sums.append(squares(eager))
        for own, (device, reduction) in enumerate(self.reductions.items()):
            others = [total.to(device) for i, total in enumerate(sums) if i != own]
            reduction.partials[-1].copy_(torch.stack(others).sum(0))
        return torch.stack([total.to(sums[-1].device) for total in sums]).sum(0) if eager else None


def squares(grads: list[Tensor]) -> Tensor:
    """Sum of squares of all elements, and in how many tensors some are not finite.

    Args:
        grads: of any layout, device and dtype. Of a DTensor all ranks count; every rank must
            call this with its part of the same tensors.

    Returns:
        Float64 [2] on the device of the first, without a host synchronisation. (On MPS, which
        has no float64, float32.)
    """
    shares: dict[Any, list[Tensor]] = defaultdict(list)
    over_ranks: dict[Any, Callable[[Tensor], Tensor]] = {}
    for grad in grads:
        key = None
        if _is_sharded(grad):
            key, over_ranks[key], grad = _shard(grad)
        shares[key].append(_squares(grad))
    device = grads[0].device
    totals = []
    for key, held in shares.items():
        total = torch.stack([share.to(device) for share in held]).sum(0)
        totals.append(over_ranks[key](total) if key else total)
    return torch.stack(totals).sum(0)


def _squares(grad: Tensor) -> Tensor:
    if grad.is_sparse:
        grad = grad.coalesce().values()
    if grad.is_complex():
        grad = torch.view_as_real(grad)
    wide = torch.float32 if grad.device.type == "mps" else torch.float64
    norm = torch.linalg.vector_norm(grad, dtype=wide)
    return torch.stack([norm.square(), (~torch.isfinite(grad).all()).to(wide)])


def _is_sharded(grad: Tensor) -> bool:
    return type(grad) is not Tensor and isinstance(grad, _dtensor())


@functools.cache
def _dtensor() -> tuple[type, ...]:
    if not torch.distributed.is_available():
        return ()
    from torch.distributed.tensor import DTensor

    return (DTensor,)


def _shard(grad: Any) -> tuple[Any, Callable[[Tensor], Tensor], Tensor]:
    """This rank's part of a DTensor, and how to sum over the ranks that hold other parts."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    placements = [Replicate() if p.is_partial() else p for p in grad.placements]
    grad = grad.redistribute(placements=placements)
    mesh = grad.device_mesh
    summed = [Partial() if p.is_shard() else Replicate() for p in placements]

    def over_ranks(total: Tensor) -> Tensor:
        return DTensor.from_local(total, mesh, summed).full_tensor()  # type: ignore[no-any-return]

    return (mesh, tuple(map(str, summed))), over_ranks, grad.to_local()
