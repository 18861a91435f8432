"""What one step should do, from what torch says the tensors hold just before it.

Nothing is remembered between steps: parameters, gradients and states are copied with all that ties
them together (shared memory, strides, negation), torch.optim's own class steps the copies, and
what follows a step is written out in plain torch. So an optimizer that used anything stale is off.
"""

import copy
from dataclasses import dataclass, field

import torch

from spectramind_fused.optim import Options
from tests.oracle import NUMBERS

OURS = ("slow_weights", "ema_weights")


@dataclass
class Expected:
    """How a step ends; where `error` is set, torch raised it."""

    params: dict = field(default_factory=dict)
    states: dict = field(default_factory=dict)
    zeroed: bool = False
    error: Exception | None = None


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def expect(optimizer, torch_class):
    """What `optimizer.step()` should do now, by index of the parameter among all.

    All is computed in float32, or in float64 beside a float64 parameter, and not yet rounded.
    """
    try:
        return stepped_copies(optimizer, torch_class)
    except Exception as error:
        return Expected(error=error)


def stepped_copies(optimizer, torch_class):
    groups = optimizer.param_groups
    needs_wide_counters = any(Options.of(group).lookahead_k for group in groups)
    everyone = [p for group in groups for p in group["params"]]
    taking_part = [i for i, p in enumerate(everyone) if p.grad is not None]
    # One copy of all, so that what shares memory still does.
    held = [(everyone[i].detach(), everyone[i].grad, dict(optimizer.state.get(everyone[i], {})))
            for i in taking_part]  # fmt: skip
    copies = dict(zip(taking_part, copy.deepcopy(held), strict=True))

    expected = Expected(zeroed=optimizer.zero_grads)
    factor, skip = scaled(optimizer, [grad for _, grad, _ in copies.values()])
    if skip:
        return expected
    theirs = torch_class([torch.zeros(1)])
    theirs.defaults = optimizer.defaults
    index = 0
    for group in groups:
        for _ in group["params"]:
            if index in copies:
                param, grad, entries = copies[index]
                shown = shown_to_torch(param, grad, factor)
                of_torch = states_of_torch(entries, shown.dtype, torch_class, needs_wide_counters)
                if of_torch.get("step") == 0 and "eta" in of_torch:  # of a skipped step
                    of_torch["eta"] = torch.as_tensor(group["lr"])
                theirs.state.update({shown: of_torch} if of_torch else {})
                # One after the other, each with all that follows its step: they may share memory.
                before = shown.detach().clone()
                theirs.param_groups = [{**group, "params": [shown], "fused": None}]
                theirs.step()
                expected.params[index] = shown.detach()
                states = expected.states[index] = dict(theirs.state.get(shown, {}))
                counted(group, entries, states)
                look_ahead(group, shown.detach(), before, entries, states)
                average(group, shown.detach(), before, entries, states)
            index += 1
    return expected


def shown_to_torch(param, grad, factor):
    """What torch's class steps: the copy itself, or a wider one."""
    compute = wide(param.dtype)
    shown = param if param.dtype == compute else param.to(compute)
    if grad.shape != shown.shape or grad.device != shown.device:
        raise RuntimeError("a gradient of another shape")
    grad = grad.to(compute)
    shown.grad = grad * factor if factor != 1 else grad
    return shown


def states_of_torch(entries, dtype, torch_class, needs_wide_counters):
    """What torch's class finds in its state."""
    if "step" in entries:
        held = entries["step"]
        wide_held = getattr(held, "dtype", None) == torch.float64
        counter = torch.float64 if wide_held or needs_wide_counters else torch.float32
        entries["step"] = torch.as_tensor(held, dtype=counter)
    return {
        name: value if name in NUMBERS else value.to(dtype)
        for name, value in entries.items()
        if name not in OURS and not (name == "step" and torch_class is torch.optim.SGD)
    }


def scaled(optimizer, grads):
    """What each gradient is multiplied by, and whether the step is skipped."""
    scale = getattr(optimizer, "grad_scale", None)
    found_inf = getattr(optimizer, "found_inf", None)
    factor = 1.0 if scale is None else 1 / float(scale)
    if optimizer.clip_grad_norm is not None:
        norm = sum(float(grad.double().square().sum()) for grad in grads) ** 0.5 * factor
        factor *= min(1.0, optimizer.clip_grad_norm / (norm + 1e-6))
    return factor, found_inf is not None and float(found_inf) != 0


def counted(group, before, now):
    """SGD's own counter, which torch has not; the state has it where Lookahead counts on it."""
    if "step" not in now and Options.of(group).lookahead_k:
        count = before.get("step")
        if count is None:
            begun = before.get("momentum_buffer") is not None
            count = max(1, Options.of(group).lookahead_k) if begun else 0
        now["step"] = torch.as_tensor(float(count) + 1, dtype=torch.float64)


def look_ahead(group, param, before, entries, states):
    k, alpha, *_ = Options.of(group)
    if k:
        slow = entries.get("slow_weights")
        slow = before.clone() if slow is None else slow.to(param.dtype)
        states["slow_weights"] = slow
        if float(states["step"]) % k == 0:
            slow += alpha * (param - slow)
            param.copy_(slow)


def average(group, param, before, entries, states):
    """Begins as the parameter."""
    decay = Options.of(group).ema_decay
    if decay is not None:
        held = entries.get("ema_weights")
        held = before if held is None else held.to(param.dtype)
        states["ema_weights"] = torch.lerp(held, param, 1 - decay)
