"""Mixed precision: a GradScaler whose check is in the step."""

from __future__ import annotations

from typing import Any

import torch

from spectramind_fused.optim.base import FusedStep


class GradScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler` without a pass of its own where it meets our optimizers.

    torch's scaler reads and writes all gradients to look for inf before the step. Our step
    reads them for their norm anyway, and looks there. With any other optimizer, and with
    `unscale_` called first, this is torch's scaler; arguments and checkpoints are torch's.
    """

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """As torch's. An error on the way leaves nothing behind for the optimizer's next step."""
        try:
            return super().step(optimizer, *args, **kwargs)
        finally:
            if isinstance(optimizer, FusedStep):
                optimizer._checks_for_inf = False
                for name in ("grad_scale", "found_inf"):
                    vars(optimizer).pop(name, None)

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        if not isinstance(optimizer, FusedStep):
            return super()._check_inf_per_device(optimizer)  # type: ignore[no-any-return]
        optimizer._checks_for_inf = True
        # Filled by the step, read by update().
        found: dict[Any, Any] = optimizer._nonfinite_per_device
        found.clear()
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = found
        return found
