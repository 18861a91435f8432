"""The state of one parameter: torch's entries, and ours beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import relaid

SLOW_WEIGHTS = "slow_weights"


def new_step(state: dict[str, Any], lookahead_k: int, device: torch.device) -> Tensor:
    """A step counter (float32, 0-dim) for a parameter that has none.

    A momentum buffer without a counter comes from a checkpoint of torch.optim.SGD: the
    buffer is not fresh, and Lookahead begins a whole cycle.
    """
    begun = state.get("momentum_buffer") is not None
    count = max(1, lookahead_k) if begun else 0
    return torch.tensor(count, dtype=torch.float32, device=device)


def prepare(state: dict[str, Any], param: Tensor, names: tuple[str, ...], lookahead_k: int) -> None:
    """Makes every entry exist on the parameter's device and in its layout, for the kernels.

    Args:
        state: the parameter's state, changed in place.
        param: the parameter.
        names: the states the rule holds.
        lookahead_k: 0, or the period of the slow weights, which start as the parameter.

    Raises:
        ValueError: an entry has another shape than the parameter.
    """
    if "step" not in state:
        state["step"] = new_step(state, lookahead_k, param.device)
    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=param.device)
    for name in names:
        if state.get(name) is None:
            state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
    if lookahead_k and SLOW_WEIGHTS not in state:
        state[SLOW_WEIGHTS] = param.detach().clone(memory_format=torch.preserve_format)
    for name in (*names, SLOW_WEIGHTS):
        if name in state:
            if state[name].shape != param.shape:
                raise ValueError(
                    f"The state {name!r} of shape {tuple(state[name].shape)} does not fit its "
                    f"parameter of shape {tuple(param.shape)}: delete it from optimizer.state, "
                    "or load the checkpoint that belongs to this model."
                )
            state[name] = relaid(state[name].to(param.device), param)
