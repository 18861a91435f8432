"""The eager backend: torch's own step, and the rest in plain torch. Fallback and oracle."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.optim.amp import Scaling
from spectramind_fused.optim.state import (
    EMA_WEIGHTS,
    LOOKAHEAD_STEP,
    SIXTEEN_BIT,
    SLOW_WEIGHTS,
    counter_dtype,
    counts_on,
    drop_unused,
    extras,
    new_step,
    new_weights,
)

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep


_SCALING = ("grad_scale", "found_inf")


class Verdict(NamedTuple):
    """What becomes of the gradients of one step, as tensors.

    Attributes:
        norm: of all unscaled gradients; None where it was not asked for.
        nonfinite: float32, 1 if any gradient is not finite; None as above.
        factor: what each gradient is multiplied by; None for 1.
        skip: whether nothing is to change; None for no.
    """

    norm: Tensor | None
    nonfinite: Tensor | None
    factor: Tensor | None
    skip: Tensor | None


def judge(total: Tensor | None, scaling: Scaling, max_norm: float | None) -> Verdict:
    """Unscales and clips, as `advance` does it in the kernels.

    Args:
        total: what `squares` returns, for all gradients; None where nothing needs it.
        scaling: what a GradScaler asks for, on the device of `total`.
        max_norm: of `clip_grad_norm_`; None: no clipping.
    """
    norm = nonfinite = factor = None
    skip = None if scaling.found_inf is None else scaling.found_inf != 0
    if scaling.grad_scale is not None:
        wide = torch.float32 if scaling.grad_scale.device.type == "mps" else torch.float64
        factor = scaling.grad_scale.to(wide).reciprocal()
    if total is not None:
        norm = total[0].sqrt() * (1 if factor is None else factor)
        nonfinite = (total[1] != 0).float()
        if max_norm is not None:
            coefficient = (max_norm / (norm + 1e-6)).clamp(max=1)
            factor = coefficient * (1 if factor is None else factor)
        if scaling.check:
            skip = nonfinite != 0
    return Verdict(norm, nonfinite, factor, skip)


def eager_step(optimizer: FusedStep, params: list[Tensor], verdict: Verdict) -> None:
    """Steps `params` by torch's own code, then does what follows a step, in plain torch.

    16-bit parameters are widened, stepped in float32 and rounded once, like a kernel (and
    like torch's fused=True) does it; torch's foreach and for-loop steps round after every
    operation. Whether to skip is read on the host, as in torch's unfused step.
    """
    if verdict.skip is None or not verdict.skip:
        with _presented(optimizer, params, verdict.factor):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    drop_unused(optimizer.state.get(p, {}), group)
            slow, averaged = _begun(optimizer, SLOW_WEIGHTS), _begun(optimizer, EMA_WEIGHTS)
            _make_fresh(optimizer)
            counters = _counters(optimizer)
            torch_step = inspect.unwrap(optimizer._torch_class.step)  # without its hooks: ours ran
            torch_step(optimizer)
            for p, counter in counters.items():
                counter += 1
                optimizer.state[p]["step"] = counter
            for group in optimizer.param_groups:
                if group["lookahead_k"]:
                    _lookahead(optimizer, group, slow)
                if group["ema_decay"] is not None:
                    _average(optimizer, group, averaged)
    if optimizer.zero_grads:
        zero_grads(params)


def zero_grads(params: list[Tensor]) -> None:
    """Fills the gradients with zeros where they are, an expanded one through one of its copies."""
    for p in params:
        grad = p.grad
        assert grad is not None
        if grad.layout is torch.strided:
            grad = grad[tuple(slice(0, 1) if s == 0 else slice(None) for s in grad.stride())]
        grad.zero_()


def _begun(optimizer: FusedStep, name: str) -> dict[Tensor, Tensor]:
    """Slow or averaged weights, begun as the parameter where missing.

    Kept apart from the state for now: torch begins its own only in an empty dict.
    """
    begun = {}
    for group in optimizer.param_groups:
        if name in extras(group):
            for p in group["params"]:
                held = optimizer.state[p].get(name)
                begun[p] = new_weights(name, p) if held is None else held
    return begun


def _counters(optimizer: FusedStep) -> dict[Tensor, Tensor]:
    """The step counters of a rule whose steps torch does not count; they are ours to move."""
    if not optimizer.rule or optimizer.torch_counts_steps:
        return {}
    counters = {}
    for group in optimizer.param_groups:
        k = group["lookahead_k"]
        for p in group["params"]:
            state = optimizer.state[p]
            known = state.get("step")
            counters[p] = new_step(state, k, p.device, wide=k != 0) if known is None else known
    return counters


def _make_fresh(optimizer: FusedStep) -> None:
    """Empties states that hold nothing of torch's: it begins its own only in an empty one.

    Counters of old checkpoints are numbers, and become tensors; where Lookahead counts on, wide.
    """
    wide = counts_on(optimizer.param_groups)
    ours_to_count = bool(optimizer.rule) and not optimizer.torch_counts_steps
    for state in optimizer.state.values():
        step = state.get("step")
        if optimizer.rule and step is not None:
            if not isinstance(step, Tensor):
                step = torch.tensor(float(step), dtype=torch.float64, device="cpu")
            step = state["step"] = step.to(counter_dtype(step, wide))
        if not state.keys() - {SLOW_WEIGHTS, EMA_WEIGHTS}:
            state.clear()
        elif ours_to_count and "momentum_buffer" in state and _is_zero(step):
            del state["momentum_buffer"]  # a kernel made it, and skipped the first step


def _is_zero(counter: Tensor | None) -> bool:
    return counter is not None and not counter.is_meta and float(counter) == 0


def _lookahead(optimizer: FusedStep, group: dict[str, Any], slow_of: dict[Tensor, Tensor]) -> None:
    """Slow += alpha * (fast - slow); fast = slow: on every k-th step of a parameter."""
    fast, slow = [], []
    for p in group["params"]:
        state = optimizer.state[p]
        state[SLOW_WEIGHTS] = slow_of[p]
        if not optimizer.rule:  # nobody promises that torch's class counts
            state[LOOKAHEAD_STEP] = state.get(LOOKAHEAD_STEP, 0) + 1
        else:
            step = state["step"]
            state["step"] = torch.as_tensor(step, dtype=counter_dtype(step, wide=True))
        count = float(state["step"] if optimizer.rule else state[LOOKAHEAD_STEP])
        if count % group["lookahead_k"] == 0:  # never after infinitely many
            fast.append(p)
            slow.append(slow_of[p])
    if fast:
        way = torch._foreach_sub(fast, slow)
        torch._foreach_add_(slow, way, alpha=group["lookahead_alpha"])
        for p, s in zip(fast, slow, strict=True):  # DTensors have no _foreach_copy_
            _write(p, s)


def _average(optimizer: FusedStep, group: dict[str, Any], averages: dict[Tensor, Tensor]) -> None:
    """Average += (1 - decay) * (parameter - average)."""
    params = group["params"]
    for p in params:
        optimizer.state[p][EMA_WEIGHTS] = averages[p]
    if params:
        weight = 1 - float(group["ema_decay"])
        torch._foreach_lerp_([averages[p] for p in params], params, weight)


@contextmanager
def _presented(optimizer: FusedStep, params: list[Tensor], factor: Tensor | None) -> Iterator[None]:
    """Shows torch's step only `params`, with stand-ins for those it must see otherwise.

    Those are 16-bit ones, and ones with a gradient or a state of another dtype, in float32 (beside
    a float64 parameter in float64); those that are negated only when read, which torch's foreach
    steps do not write to; and all whose gradient is multiplied by a factor: nobody writes into
    `.grad`.
    """
    groups, state = optimizer.param_groups, optimizer.state
    # What the scaler left is in the factor; torch's unfused steps refuse it.
    scaling = {k: vars(optimizer).pop(k) for k in _SCALING if k in vars(optimizer)}
    widened = {p: _widened(optimizer, state.get(p, {}), p) for p in params}
    shown = {p: _stand_in(p, factor, widened[p] is not None) for p in params}
    optimizer.state = defaultdict(dict)
    for p, q in shown.items():
        if p in state:
            optimizer.state[q] = widened[p] or (state[p] if q is p else dict(state[p]))
    optimizer.param_groups = [
        {
            **group,
            **({"fused": None} if "fused" in group else {}),
            "params": [shown[p] for p in group["params"] if p in shown],
        }
        for group in groups
    ]
    try:
        yield
        for p, q in shown.items():
            if q is p:
                state[p] = optimizer.state[p]
            else:
                if q.dtype != p.dtype or p.is_neg():
                    _write(p, q)
                _narrow(optimizer, optimizer.state[q], into=state[p], dtype=p.dtype)
    finally:
        optimizer.param_groups, optimizer.state = groups, state
        vars(optimizer).update(scaling)


def _stand_in(param: Tensor, factor: Tensor | None, widened: bool) -> Tensor:
    """A float32 copy of a 16-bit parameter, or the same memory beside another gradient."""
    grad = param.grad
    assert grad is not None
    dtype = _compute_dtype(param)
    mixed = grad.layout is torch.strided and grad.dtype != dtype
    if param.dtype == dtype and factor is None and not (mixed or widened or param.is_neg()):
        return param
    shown = param.detach().to(dtype).resolve_neg()
    grad = grad.to(dtype)
    shown.grad = grad if factor is None else grad * factor.to(grad.device, grad.dtype.to_real())
    return shown


def _compute_dtype(param: Tensor) -> torch.dtype:
    """What a step is computed in."""
    return torch.float32 if param.dtype in SIXTEEN_BIT else param.dtype


def _widened(optimizer: FusedStep, state: dict[str, Any], param: Tensor) -> dict[str, Any] | None:
    """The state in the dtype that its parameter's step is computed in; None where it is."""
    dtype = _compute_dtype(param)

    def differs(key: str, value: Any) -> bool:
        if key == "step" or not isinstance(value, Tensor) or not value.is_floating_point():
            return False
        per_element = key in (*optimizer.state_names, SLOW_WEIGHTS, EMA_WEIGHTS)
        if per_element and (value.dtype != dtype or value.is_neg()):
            return True
        return value.dtype in SIXTEEN_BIT and dtype not in SIXTEEN_BIT

    if not any(differs(key, value) for key, value in state.items()):
        return None
    return {k: v.to(dtype).resolve_neg() if differs(k, v) else v for k, v in state.items()}


def _narrow(
    optimizer: FusedStep, wide: dict[str, Any], into: dict[str, Any], dtype: torch.dtype
) -> None:
    for key in into.keys() - wide.keys():  # what the step dropped
        del into[key]
    for key, value in wide.items():
        old = into.get(key)
        if isinstance(old, Tensor) and (key != "step" or old.dtype == value.dtype):
            if old is not value:
                _write(old, value)
        elif isinstance(value, Tensor) and _per_element(optimizer, key, value):
            into[key] = value.to(dtype)
        else:
            into[key] = value


def _write(tensor: Tensor, values: Tensor) -> None:
    """As copy_, which leaves the wrong sign in a 16-bit tensor that is negated when read."""
    if tensor.is_neg():
        torch._neg_view(tensor).copy_(-values)
    else:
        tensor.copy_(values)


def _per_element(optimizer: FusedStep, key: str, value: Tensor) -> bool:
    """Whether an entry is kept in the parameter's dtype: not counters, products and averages."""
    if key in ("step", EMA_WEIGHTS):
        return False
    return bool(optimizer.rule) or value.dim() > 0
