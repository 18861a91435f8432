"""The eager backend: torch's own step, and Lookahead in plain torch. Fallback and oracle."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectramind_fused.optim.state import SLOW_WEIGHTS, new_step

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep

_16_BIT = (torch.bfloat16, torch.float16)


def eager_step(optimizer: FusedStep, params: list[Tensor]) -> None:
    """Steps `params` by torch's own code, then syncs their slow weights where due.

    16-bit parameters are widened, stepped in float32 and rounded once, like a kernel (and
    like torch's fused=True) does it; torch's foreach and for-loop steps round after every
    operation.
    """
    with _presented(optimizer, params):
        slow = _slow_weights(optimizer)
        if not optimizer.torch_counts_steps:
            _count(optimizer)
        torch_step = inspect.unwrap(optimizer._torch_class.step)  # without its hooks: ours ran
        torch_step(optimizer)
        for group in optimizer.param_groups:
            if group["lookahead_k"]:
                _lookahead(optimizer, group, slow)


def _slow_weights(optimizer: FusedStep) -> dict[Tensor, Tensor]:
    """The slow weights, begun where missing; torch begins its own state only in an empty dict."""
    slow = {}
    for group in optimizer.param_groups:
        for p in group["params"] if group["lookahead_k"] else ():
            held = optimizer.state[p].get(SLOW_WEIGHTS)
            slow[p] = p.detach().clone() if held is None else held
    return slow


def _count(optimizer: FusedStep) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state[p]
            if "step" not in state:
                state["step"] = new_step(state, group["lookahead_k"], p.device)
            state["step"] += 1


def _lookahead(optimizer: FusedStep, group: dict[str, Any], slow_of: dict[Tensor, Tensor]) -> None:
    """Slow += alpha * (fast - slow); fast = slow: on every k-th step of a parameter."""
    fast, slow = [], []
    for p in group["params"]:
        state = optimizer.state[p]
        state[SLOW_WEIGHTS] = slow_of[p]
        if int(state["step"]) % group["lookahead_k"] == 0:
            fast.append(p)
            slow.append(slow_of[p])
    if fast:
        way = torch._foreach_sub(fast, slow)
        torch._foreach_add_(slow, way, alpha=group["lookahead_alpha"])
        torch._foreach_copy_(fast, slow)


@contextmanager
def _presented(optimizer: FusedStep, params: list[Tensor]) -> Iterator[None]:
    """Shows torch's step only `params`, with float32 stand-ins for 16-bit ones."""
    groups, state = optimizer.param_groups, optimizer.state
    shown = {p: _stand_in(p) if p.dtype in _16_BIT else p for p in params}
    optimizer.state = defaultdict(dict)
    for p, q in shown.items():
        if p in state:
            optimizer.state[q] = state[p] if q is p else _widened(state[p])
    optimizer.param_groups = [
        {**group, "fused": None, "params": [shown[p] for p in group["params"] if p in shown]}
        for group in groups
    ]
    try:
        yield
        for p, q in shown.items():
            if q is p:
                state[p] = optimizer.state[p]
            else:
                p.copy_(q)
                _narrow(optimizer.state[q], into=state[p], dtype=p.dtype)
    finally:
        optimizer.param_groups, optimizer.state = groups, state


def _stand_in(param: Tensor) -> Tensor:
    wide = param.detach().float()
    assert param.grad is not None
    wide.grad = param.grad.float()
    return wide


def _widened(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.float() if isinstance(value, Tensor) and value.dtype in _16_BIT else value
        for key, value in state.items()
    }


def _narrow(wide: dict[str, Any], into: dict[str, Any], dtype: torch.dtype) -> None:
    for key, value in wide.items():
        old = into.get(key)
        if isinstance(old, Tensor):
            if old is not value:
                old.copy_(value)
        elif isinstance(value, Tensor) and value.is_floating_point() and key != "step":
            into[key] = value.to(dtype)
        else:
            into[key] = value
