"""What follows a step, in plain torch: Lookahead, averaged weights, zeroed gradients."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.stepping.algorithm import Group
from spectramind_fused.stepping.options import Options
from spectramind_fused.stepping.state import LOOKAHEAD_STEP, counter_dtype, extras
from spectramind_fused.stepping.storage import EMA_WEIGHTS, SLOW_WEIGHTS, put

States = MutableMapping[Tensor, dict[str, Any]]


def begun_weights(
    groups: list[Group], states: States, name: str, dtypes: Mapping[Tensor, torch.dtype]
) -> dict[Tensor, Tensor]:
    """Slow or averaged weights (`name`), begun as the parameter where they are missing.

    Rounded to the dtype that they are kept in, if it is a smaller one. Kept apart from the states
    for now: torch begins its own only in an empty dict.
    """
    begun = {}
    for group in groups:
        if name in extras(group):
            for p in group["params"]:
                held = states[p].get(name)
                begun[p] = p.detach().to(dtypes[p]).to(p.dtype, copy=True) if held is None else held
    return begun


def lookahead(
    group: Group, states: States, slow_of: Mapping[Tensor, Tensor], has_step: bool
) -> None:
    """Slow += alpha * (fast - slow); fast = slow: on every k-th step of a parameter.

    Args:
        group: its parameters have been stepped.
        states: of the parameters.
        slow_of: the slow weights of each.
        has_step: whether the states hold a step counter; if not, one is kept for this.
    """
    options = Options.of(group)
    fast, slow = [], []
    for p in group["params"]:
        state = states[p]
        state[SLOW_WEIGHTS] = slow_of[p]
        if has_step:
            step = state["step"]
            state["step"] = torch.as_tensor(step, dtype=counter_dtype(step, wide=True))
        else:
            state[LOOKAHEAD_STEP] = state.get(LOOKAHEAD_STEP, 0) + 1
        count = float(state["step" if has_step else LOOKAHEAD_STEP])
        if count % options.lookahead_k == 0:  # never after infinitely many
            fast.append(p)
            slow.append(slow_of[p])
    if fast:
        way = torch._foreach_sub(fast, slow)
        torch._foreach_add_(slow, way, alpha=options.lookahead_alpha)
        for p, s in zip(fast, slow, strict=True):  # DTensors have no _foreach_copy_
            put(p, s)


def average(group: Group, states: States, averages: Mapping[Tensor, Tensor]) -> None:
    """Average += (1 - decay) * (parameter - average)."""
    params = group["params"]
    for p in params:
        states[p][EMA_WEIGHTS] = averages[p]
    if params:
        weight = 1 - float(Options.of(group).ema_decay)
        torch._foreach_lerp_([averages[p] for p in params], params, weight)


def zero_grads(params: list[Tensor]) -> None:
    """Fills the gradients with zeros where they are, an expanded one through one of its copies."""
    for p in params:
        grad = p.grad
        assert grad is not None
        if grad._is_zerotensor():
            continue
        if grad.layout is torch.strided:
            grad = grad[tuple(slice(0, 1) if s == 0 else slice(None) for s in grad.stride())]
        grad.zero_()
