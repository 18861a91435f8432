"""What one step should do, from what torch says the tensors hold just before it.

Nothing is remembered between steps: parameters, gradients and states are copied with all that ties
them together (shared memory, strides, negation), torch.optim's own class steps the copies, and
what follows a step is written out in plain torch. So an optimizer that used anything stale is off.

What is held in fewer bits is read back first, by `stepping/storage.py`, which has tests of its own:
the step is torch's from the values that are there, and is not rounded.
"""

import copy
from dataclasses import dataclass, field

import torch

from spectramind_fused.multi_tensor.storages import Storage, dtype_of
from spectramind_fused.optim import Options
from spectramind_fused.optim.muon import Muon
from spectramind_fused.stepping.storage import (
    PARAM,
    begun,
    convert,
    entries_of,
    held_storage,
    read,
    storages_of,
)
from tests.oracle import NUMBERS, WrittenOutLion

OURS = ("slow_weights", "ema_weights")
COUNT_NOTHING = (torch.optim.SGD, WrittenOutLion, torch.optim.Muon)


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
    needs_wide_counters = any(counts(Options.of(group)) for group in groups)
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
    theirs = torch_class([torch.zeros(1, 1)])
    theirs.defaults = optimizer.defaults
    index = 0
    for group in groups:
        for _ in group["params"]:
            if index in copies:
                param, grad, entries = copies[index]
                algorithm = type(optimizer).algorithm.of(param, group)
                storages = storages_of(algorithm, group, param, entries)
                computed = read_back(storages, param, entries)
                shown = shown_to_torch(param, computed, grad, factor)
                stepper = steps_as(torch_class, group)
                of_torch = states_of_torch(entries, shown.dtype, stepper, needs_wide_counters)
                begin(of_torch, group, shown, torch_class)
                theirs.state.update({shown: of_torch} if of_torch else {})
                # One after the other, each with all that follows its step: they may share memory.
                before = shown.detach().clone()
                theirs.param_groups = [{**group, "params": [shown], "fused": None}]
                theirs.step()
                expected.params[index] = shown.detach()
                states = expected.states[index] = dict(theirs.state.get(shown, {}))
                counted(group, entries, states)
                dtypes = {name: dtype_of(storages[name]) for name in OURS}
                look_ahead(group, shown.detach(), before, entries, states, dtypes)
                average(group, shown.detach(), before, entries, states, dtypes)
            index += 1
    return expected


def steps_as(torch_class, group):
    """The class of torch's whose code steps a group."""
    if torch_class is not Muon:
        return torch_class
    return torch.optim.Muon if group.get("use_muon", True) else torch.optim.AdamW


def counts(options):
    """Whether a group's steps are counted, and beyond 2^24, for something of ours."""
    low = (options.ema_dtype, options.state_dtype)
    drawn = options.stochastic_rounding or any(d in ("bfloat16", "int8") for d in low)
    return bool(options.lookahead_k or drawn)


def read_back(storages, param, entries):
    """What the parameter is computed as; states that are or will be held in fewer bits in float32.

    An option that was changed stores what is held otherwise before it is stepped with.
    """
    values = {}
    for name, storage in storages.items():
        held = held_storage(name, entries, param)
        if isinstance(storage, Storage) or isinstance(held, Storage):
            if held is not None and held != storage:
                convert(name, storage, entries, param)
            if name == PARAM or begun(entries, name):
                values[name] = read(name, entries, param)
    for name in {*values, PARAM}:
        for key in entries_of(name) & entries.keys():
            del entries[key]
    computed = values.pop(PARAM, param)
    entries.update(values)
    return computed


def begin(of_torch, group, shown, torch_class):
    """What torch begins elsewhere than in a step; and again where that step was skipped."""
    if torch_class is torch.optim.Adagrad and not of_torch:
        of_torch.update(step=torch.zeros(()), sum=torch.zeros_like(shown))
    if of_torch.get("step") == 0:
        for name in {"eta", "step_size"} & of_torch.keys():
            of_torch[name] = torch.full_like(of_torch[name], float(group["lr"]))


def shown_to_torch(param, computed, grad, factor):
    """What torch's class steps: the copy itself, or a wider one."""
    compute = wide(param.dtype)
    shown = computed if computed.dtype == compute else computed.to(compute)
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
        if name not in OURS and not (name == "step" and torch_class in COUNT_NOTHING)
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
    """SGD's own counter, which torch has not; the state has it where something counts on it."""
    if "step" not in now and counts(Options.of(group)):
        count = before.get("step")
        if count is None:
            begun = before.get("momentum_buffer") is not None
            count = max(1, Options.of(group).lookahead_k) if begun else 0
        now["step"] = torch.as_tensor(float(count) + 1, dtype=torch.float64)


def look_ahead(group, param, before, entries, states, dtypes):
    k, alpha, *_ = Options.of(group)
    if k:
        slow = entries.get("slow_weights")
        slow = before.to(dtypes["slow_weights"], copy=True) if slow is None else slow
        slow = states["slow_weights"] = slow.to(param.dtype)
        if float(states["step"]) % k == 0:
            slow += alpha * (param - slow)
            param.copy_(slow)


def average(group, param, before, entries, states, dtypes):
    """Begins as the parameter."""
    decay = Options.of(group).ema_decay
    if decay is not None:
        held = entries.get("ema_weights")
        held = before.to(dtypes["ema_weights"]) if held is None else held
        states["ema_weights"] = torch.lerp(held.to(param.dtype), param, 1 - decay)
