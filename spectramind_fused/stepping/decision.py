"""What becomes of the gradients of one step: the kernels' `advance`, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import Scaling


class Decision(NamedTuple):
    """As `struct Decision` in csrc/walk.h, in tensors; None where nothing is asked for.

    Attributes:
        unscale: what each gradient is multiplied by before it is clipped.
        norm: of all unscaled gradients.
        nonfinite: float32, 1 if any gradient is not finite.
        skip: whether nothing is to change.
    """

    unscale: Tensor | None
    norm: Tensor | None
    nonfinite: Tensor | None
    skip: Tensor | None

    def factor(self, max_norm: float | None) -> Tensor | None:
        """What each gradient is multiplied by, clipping included; None for 1."""
        if self.norm is None or max_norm is None:
            return self.unscale
        coefficient = (max_norm / (self.norm + 1e-6)).clamp(max=1)
        return coefficient * (1 if self.unscale is None else self.unscale)


def decide(total: Tensor | None, scaling: Scaling) -> Decision:
    """Unscales and looks for what is not finite.

    Args:
        total: what `norm.squares` returns, for all gradients; None where nothing needs it.
        scaling: what a GradScaler asks for, on the device of `total`.
    """
    unscale = norm = nonfinite = None
    skip = None if scaling.found_inf is None else scaling.found_inf != 0
    if scaling.grad_scale is not None:
        wide = torch.float32 if scaling.grad_scale.device.type == "mps" else torch.float64
        unscale = scaling.grad_scale.to(wide).reciprocal()
    if total is not None:
        norm = total[0].sqrt() * (1 if unscale is None else unscale)
        nonfinite = (total[1] != 0).float()
        if scaling.skip_nonfinite:
            skip = nonfinite != 0
    return Decision(unscale, norm, nonfinite, skip)
