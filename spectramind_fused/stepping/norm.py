"""The total norm of an optimizer's gradients: over buckets, devices, eager tensors and ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import Reduction
from spectramind_fused.stepping.shards import Sharding, summed


class Part(NamedTuple):
    """What one bucket adds to the norm.

    Attributes:
        device: of the bucket.
        rows: how many partial sums it leaves.
        sharding: how its tensors are split.
    """

    device: torch.device
    rows: int
    sharding: Sharding


class NormPass:
    """Where the partial sums of every bucket go, and how they come together.

    Attributes:
        reductions: one for each device that kernels serve.
        first_rows: for each bucket, its first row.
    """

    def __init__(self, parts: list[Part], shardings: list[Sharding]) -> None:
        """Makes room for the sums.

        Args:
            parts: one for each bucket.
            shardings: of all gradients. Every rank must name them in the same order, for it
                sums over the ranks in that order.
        """
        self._parts = parts
        self._shardings = list(dict.fromkeys(shardings))
        self.first_rows = []
        rows: dict[torch.device, int] = {}
        for part in parts:
            self.first_rows.append(rows.get(part.device, 0))
            rows[part.device] = rows.get(part.device, 0) + part.rows
        self.reductions = {device: Reduction(count, device) for device, count in rows.items()}

    def combine(self, eager: list[Tensor], group: Any) -> Tensor | None:
        """Tells every device about the gradients elsewhere, after the kernels' norm pass.

        Args:
            eager: gradients that no kernel serves, of any layout, device and dtype.
            group: the process group, or "world", whose other ranks hold other parameters; None
                for none.

        Returns:
            What `squares` returns, for all gradients; None where the kernels of one device have
            read all of them.
        """
        sharded = any(sharding.mesh is not None for sharding in self._shardings)
        if len(self.reductions) == 1 and not eager and not sharded and group is None:
            return None
        if group == "world":
            group = torch.distributed.group.WORLD
        total = self._over_ranks(self._shares(eager), group)
        for device, reduction in self.reductions.items():
            reduction.partials.zero_()
            reduction.partials[-1] = total.to(device)
        return total

    def _shares(self, eager: list[Tensor]) -> dict[Sharding, list[Tensor]]:
        """What this rank has read, by how it is split."""
        shares: dict[Sharding, list[Tensor]] = {sharding: [] for sharding in self._shardings}
        for part, first in zip(self._parts, self.first_rows, strict=True):
            partials = self.reductions[part.device].partials
            shares[part.sharding].append(partials[first : first + part.rows].sum(0))
        for grad in eager:
            shares[Sharding.of(grad)].append(squares(summed(grad)))
        return shares

    @staticmethod
    def _over_ranks(shares: dict[Sharding, list[Tensor]], group: Any) -> Tensor:
        held = [share for of_one in shares.values() for share in of_one]
        device = held[-1].device if held else _device_of(group)
        zero = torch.zeros(2, dtype=held[-1].dtype if held else torch.float64, device=device)
        total = zero.clone()
        for sharding, of_one in shares.items():
            share = torch.stack([zero, *(part.to(zero) for part in of_one)]).sum(0)
            total += sharding.total(share)
        if group is not None:
            torch.distributed.all_reduce(total, group=group)
        return total


def squares(grad: Tensor) -> Tensor:
    """Sum of squares of all elements, and whether some are not finite.

    Returns:
        Float64 [2] on the gradient's device, without a host synchronisation. (On MPS, which
        has no float64, float32.)
    """
    if grad.is_sparse:
        grad = grad.coalesce().values()
    if grad.is_complex():
        grad = torch.view_as_real(grad)
    wide = torch.float32 if grad.device.type == "mps" else torch.float64
    norm = torch.linalg.vector_norm(grad, dtype=wide)
    return torch.stack([norm.square(), (~torch.isfinite(grad).all()).to(wide)])


def _device_of(group: Any) -> torch.device:
    nccl = group is not None and torch.distributed.get_backend(group) == "nccl"
    return torch.device("cuda" if nccl else "cpu")
