"""Lion, which torch.optim has not: the plain class, and the fused one over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm
from spectramind_fused.stepping.shards import is_dtensor


class Lion(torch.optim.Optimizer):
    """Lion in plain torch: what torch.optim would hold if it had it.

    The state of a parameter is `exp_avg`, of its shape and dtype.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate; every element moves by it. The paper takes 3 to 10 times less than
            for AdamW, with as many times more weight decay.
        betas: the mean that gives the direction, and the mean that is kept.
        weight_decay: apart from the gradient, as in AdamW.
        maximize: ascends.

    Raises:
        ValueError: an argument is out of range.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms (2023).
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for i, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Performs one step.

        Args:
            closure: reevaluates the model and returns the loss.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                self._step_group(group, [p for p in group["params"] if p.grad is not None])
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads, means = [], []
        for p in params:
            if p.grad.is_sparse:  # type: ignore[union-attr]
                raise RuntimeError("Lion does not support sparse gradients")
            state = self.state[p]
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            grads.append(_real(p.grad))
            means.append(_real(state["exp_avg"]))
        if not params:
            return
        lr, beta1, beta2 = (float(value) for value in (group["lr"], *group["betas"]))
        params = [_real(p) for p in params]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        # One rounding per operation, as in the kernels: near 0 the last bit decides the sign.
        directions = torch._foreach_mul(means, beta1)
        torch._foreach_add_(directions, torch._foreach_mul(grads, 1 - beta1))
        if any(map(is_dtensor, directions)):  # no foreach_sign of them before torch 2.11
            for direction in directions:
                direction.sign_()
        else:
            torch._foreach_sign_(directions)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, directions, alpha=-lr)
        torch._foreach_mul_(means, beta2)
        torch._foreach_add_(means, torch._foreach_mul(grads, 1 - beta2))


class FusedLion(FusedStep, Lion):
    """`Lion` in one pass over memory, with Lookahead.

    Takes every argument of `Lion`, and those of `FusedStep`. With Lookahead the state holds
    `step` beside `exp_avg`.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms (2023).
    """

    algorithm = Algorithm(
        rule="lion",
        states={"exp_avg": ALWAYS},
        hyperparameters=("lr", "betas", "weight_decay"),
        sparse_hint="use FusedSGD, or torch.optim.SparseAdam",
        torch_counts_steps=False,
    )


def _real(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
