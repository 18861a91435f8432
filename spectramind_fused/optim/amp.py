"""Mixed precision: what a GradScaler asks of a step, and a scaler whose check is in the step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep


class Scaling(NamedTuple):
    """What a GradScaler asks of a step.

    Attributes:
        grad_scale: a factor that the gradients carry; None for none.
        found_inf: not 0 where the step is to be skipped; None where nothing was looked for.
        check: whether the step itself looks for gradients that are not finite.
    """

    grad_scale: Tensor | None
    found_inf: Tensor | None
    check: bool

    @classmethod
    def of(cls, optimizer: FusedStep) -> Scaling:
        """Reads what the scaler left on the optimizer, for this one step."""
        check, optimizer._checks_for_inf = optimizer._checks_for_inf, False
        grad_scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        return cls(_float32(grad_scale), None if check else _float32(found_inf), check)

    def on(self, device: torch.device) -> Scaling:
        """The same with its tensors on `device`; no host synchronisation."""
        return Scaling(_moved(self.grad_scale, device), _moved(self.found_inf, device), self.check)


def _float32(value: Any) -> Tensor | None:
    if value is None:
        return None
    tensor = torch.as_tensor(value, dtype=torch.float32).resolve_neg()
    if tensor.numel() != 1:
        raise ValueError(
            f"grad_scale and found_inf are one number each, not of shape {tuple(tensor.shape)}."
        )
    return tensor


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    if tensor is None or tensor.device == device:
        return tensor
    return tensor.to(device, non_blocking=True)


class GradScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler` without a pass of its own where it meets our optimizers.

    torch's scaler reads and writes all gradients to look for inf before the step. Our step
    reads them for their norm anyway, and looks there. With any other optimizer, and with
    `unscale_` called first, this is torch's scaler; arguments and checkpoints are torch's.
    """

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """As torch's. An error on the way leaves nothing behind for the optimizer's next step."""
        from spectramind_fused.optim.step import FusedStep

        try:
            return super().step(optimizer, *args, **kwargs)
        finally:
            if isinstance(optimizer, FusedStep):
                optimizer._checks_for_inf = False
                for name in ("grad_scale", "found_inf"):
                    vars(optimizer).pop(name, None)

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        from spectramind_fused.optim.step import FusedStep

        if not isinstance(optimizer, FusedStep):
            return super()._check_inf_per_device(optimizer)  # type: ignore[no-any-return]
        optimizer._checks_for_inf = True
        # Filled by the step, read by update().
        found: dict[Any, Any] = optimizer._nonfinite_per_device
        found.clear()
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = found
        return found
