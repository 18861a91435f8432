"""The total norm of an optimizer's gradients: over buckets, devices, eager tensors and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import PIECE, Reduction, is_plain
from spectramind_fused.stepping.agreement import Agreement, group_of, shardings_of
from spectramind_fused.stepping.inputs import StepInputs
from spectramind_fused.stepping.shards import Sharding, locals_of, summed


class NormPass:
    """Where the partial sums of every tensor go, and how they come together.

    Attributes:
        reductions: one for each device that kernels serve.
        first_rows: for each parameter of the optimizer its first row there.
    """

    def __init__(
        self, everyone: list[Tensor], devices: Iterable[torch.device], grads: list[Any]
    ) -> None:
        """Makes room for the sums.

        Args:
            everyone: all parameters of the optimizer, as the user holds them, whether they take
                part or not: where their sums lie must not depend on who took part before.
            devices: those that kernels serve.
            grads: gradients, some of which may be split otherwise than their parameters.
        """
        self._home = next((p.device for p in everyone if p.is_cuda), torch.device("cpu"))
        shardings = list(map(Sharding.of, everyone))
        self._everyone = everyone
        self._shardings = shardings_of(everyone, grads)
        self._agreement: Agreement | None = None
        locals_of_all = locals_of(everyone)
        self.first_rows = [0] * len(everyone)
        self._rows: dict[tuple[torch.device, Sharding], tuple[int, int]] = {}
        self.reductions: dict[torch.device, Reduction] = {}
        for device in dict.fromkeys(devices):
            end = 0
            for sharding in self._shardings:
                first = end
                for i, param in enumerate(locals_of_all):
                    if shardings[i] == sharding and is_plain(param) and param.device == device:
                        self.first_rows[i] = end
                        end += -(-param.numel() // PIECE)
                self._rows[device, sharding] = first, end
            self.reductions[device] = Reduction(end, device)

    def combine(self, eager: list[Tensor], inputs: StepInputs | None) -> Tensor | None:
        """Tells every device about the gradients elsewhere, after the kernels' norm pass.

        Args:
            eager: gradients that no kernel serves, of any layout, device and dtype.
            inputs: what this step brings; None where there are no other ranks.

        Returns:
            What `squares` returns, for all gradients; None where the kernels of one device have
            read all of them.

        Raises:
            RuntimeError: a rank did not answer, refused its step, or takes another one.
        """
        group = inputs.norm_group if inputs else None
        sharded = any(sharding.mesh is not None for sharding in self._shardings)
        if len(self.reductions) == 1 and not eager and not sharded and group is None:
            return None
        total = self._over_ranks(self._shares(eager), inputs)
        for device, reduction in self.reductions.items():
            reduction.elsewhere.copy_(total.to(device).view(1, 2))
            reduction.sums = reduction.elsewhere
        return total

    def _shares(self, eager: list[Tensor]) -> dict[Sharding, list[Tensor]]:
        """What this rank has read, by how it is split."""
        shares: dict[Sharding, list[Tensor]] = {sharding: [] for sharding in self._shardings}
        for (device, sharding), (first, last) in self._rows.items():
            if first < last:
                partials = self.reductions[device].partials
                shares[sharding].append(partials[first:last].sum(0))
        for grad in eager:
            shares[Sharding.of(grad)].append(squares(summed(grad)))
        return shares

    def _over_ranks(
        self, shares: dict[Sharding, list[Tensor]], inputs: StepInputs | None
    ) -> Tensor:
        group = group_of(inputs.norm_group) if inputs else None
        objections: list[str] = []

        def told(part: Tensor, sharding: Sharding | None) -> Tensor:
            """A part summed over ranks, which say in the same sum what they are about to do."""
            assert inputs is not None
            agreement = self._spoken(inputs)
            said = agreement.say(part, sharding, inputs, bool(objections))
            with _answered():
                if sharding is not None:
                    said = sharding.total(said)
                else:
                    torch.distributed.all_reduce(said, group=group)
            if objection := agreement.heard(said, sharding):
                objections.append(objection)
            return said[:2]

        held = [share for of_one in shares.values() for share in of_one]
        device = held[-1].device if held else self._home_for(group)
        zero = torch.zeros(2, dtype=held[-1].dtype if held else torch.float64, device=device)
        total = zero.clone()
        for sharding, of_one in shares.items():
            share = zero
            for part in of_one:  # in turn, so that nobody's last bits depend on one that adds 0
                share = share + part.to(zero)
            total += share if sharding.mesh is None or inputs is None else told(share, sharding)
        if group is not None:
            total = told(total, None)
        if objections:  # only now: no other rank waits for this one
            raise RuntimeError(objections[0])
        if self._agreement is not None:
            self._agreement.end()
        return total

    def _spoken(self, inputs: StepInputs) -> Agreement:
        if self._agreement is None:
            self._agreement = Agreement(self._everyone, self._shardings, inputs.norm_group)
        return self._agreement

    def _home_for(self, group: Any) -> torch.device:
        """Where the norm is of a rank that has no gradient."""
        nccl = group is not None and torch.distributed.get_backend(group) == "nccl"
        return torch.device("cuda") if nccl and self._home.type == "cpu" else self._home


@contextmanager
def _answered() -> Iterator[None]:
    """Says what a sum over ranks is for, where torch says that a rank is gone or late."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "Another rank did not answer when the norm of the gradients was summed, or is gone: "
            f"{error}\nNothing has moved on this one. Each rank must call step() as often as the "
            "others, and all of them with clip_grad_norm, or none."
        ) from error


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
