"""The state of one parameter: torch's entries, and ours beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import relaid

SLOW_WEIGHTS = "slow_weights"
EMA_WEIGHTS = "ema_weights"
LOOKAHEAD_STEP = "lookahead_step"  # the count of a class that has no kernels
SIXTEEN_BIT = (torch.bfloat16, torch.float16)


def extras(group: dict[str, Any]) -> tuple[str, ...]:
    """The entries that a group's options add to torch's."""
    wanted = {SLOW_WEIGHTS: group["lookahead_k"] != 0, EMA_WEIGHTS: group["ema_decay"] is not None}
    return tuple(name for name, on in wanted.items() if on)


def weights_dtype(name: str, param: Tensor) -> torch.dtype:
    """Averages are float32 at least: in 16 bits a decay near 1 would never move them."""
    wide = name == EMA_WEIGHTS and param.dtype in SIXTEEN_BIT
    return torch.float32 if wide else param.dtype


def new_weights(name: str, param: Tensor) -> Tensor:
    """Slow or averaged weights that begin as the parameter."""
    dtype = weights_dtype(name, param)
    return param.detach().to(dtype, copy=True, memory_format=torch.preserve_format)


def new_step(state: dict[str, Any], lookahead_k: int, device: torch.device) -> Tensor:
    """A step counter (float32, 0-dim) for a parameter that has none.

    A momentum buffer without a counter comes from a checkpoint of torch.optim.SGD: the
    buffer is not fresh, and Lookahead begins a whole cycle.
    """
    begun = state.get("momentum_buffer") is not None
    count = max(1, lookahead_k) if begun else 0
    return torch.tensor(count, dtype=torch.float32, device=device)


def prepare(
    state: dict[str, Any], param: Tensor, names: tuple[str, ...], group: dict[str, Any]
) -> None:
    """Makes every entry exist on the parameter's device and in its layout, for the kernels.

    Args:
        state: the parameter's state, changed in place.
        param: the parameter.
        names: the states the rule holds.
        group: its options say which weights of ours are kept; they start as the parameter.

    Raises:
        ValueError: an entry has another shape than the parameter.
    """
    if "step" not in state:
        state["step"] = new_step(state, group["lookahead_k"], param.device)
    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=param.device)
    for name in names:
        if state.get(name) is None:
            state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
    for name in extras(group):
        if name not in state:
            state[name] = new_weights(name, param)
    for name in (*names, SLOW_WEIGHTS, EMA_WEIGHTS):
        if name in state:
            if state[name].shape != param.shape:
                raise ValueError(
                    f"The state {name!r} of shape {tuple(state[name].shape)} does not fit its "
                    f"parameter of shape {tuple(param.shape)}: delete it from optimizer.state, "
                    "or load the checkpoint that belongs to this model."
                )
            state[name] = relaid(state[name].to(param.device), param)
