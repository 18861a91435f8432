"""The state of one parameter: torch's entries, and ours beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import relaid
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.options import Options

SLOW_WEIGHTS = "slow_weights"
EMA_WEIGHTS = "ema_weights"
LOOKAHEAD_STEP = "lookahead_step"  # the count of a class that has no kernels
SIXTEEN_BIT = (torch.bfloat16, torch.float16)


def extras(group: Group) -> tuple[str, ...]:
    """The entries that a group's options add to torch's."""
    options = Options.of(group)
    wanted = {SLOW_WEIGHTS: options.lookahead_k != 0, EMA_WEIGHTS: options.ema_decay is not None}
    return tuple(name for name, on in wanted.items() if on)


def weights_dtype(name: str, param: Tensor) -> torch.dtype:
    """Averages are float32 at least: in 16 bits a decay near 1 would never move them."""
    wide = name == EMA_WEIGHTS and param.dtype in SIXTEEN_BIT
    return torch.float32 if wide else param.dtype


def new_weights(name: str, param: Tensor) -> Tensor:
    """Slow or averaged weights that begin as the parameter."""
    dtype = weights_dtype(name, param)
    return param.detach().to(dtype, copy=True, memory_format=torch.preserve_format)


def keeps_counter(algorithm: Algorithm, group: Group) -> bool:
    """Whether the state has the step counter; if not, the optimizer keeps it apart."""
    return algorithm.torch_counts_steps or Options.of(group).lookahead_k != 0


def place_counter(
    algorithm: Algorithm,
    state: dict[str, Any],
    param: Tensor,
    group: Group,
    apart: dict[Tensor, Tensor],
    wide: bool,
) -> Tensor:
    """The step counter of a parameter, 0-dim and on its device, put where it belongs.

    Args:
        algorithm: what the optimizer's class is.
        state: the parameter's, changed in place; before its missing entries are made.
        param: the parameter.
        group: its group.
        apart: counters that are not in states, changed in place.
        wide: as in `counter_dtype`.
    """
    kept, known = keeps_counter(algorithm, group), apart.pop(param, None)
    step = state.get("step") if kept else state.pop("step", known)
    if not kept and any(state.get(name) is None for name in algorithm.states_of(group)):
        step = None  # torch, too, begins where the state is missing
    if step is None:
        step = new_step(state, group, param.device, wide)
        step = step if known is None else step * known.sign()  # 0: its first step was skipped
    step = torch.as_tensor(step, dtype=counter_dtype(step, wide), device=param.device)
    step = step.resolve_neg()
    if kept:
        state["step"] = step
    else:
        apart[param] = step
    return step


def counter_of(state: dict[str, Any], param: Tensor, apart: dict[Tensor, Tensor]) -> Tensor:
    """The step counter that `place_counter` has put somewhere."""
    step: Tensor = state["step"] if "step" in state else apart[param]
    return step


def new_step(
    state: dict[str, Any], group: Group, device: torch.device, wide: bool = False
) -> Tensor:
    """A step counter (0-dim) for a parameter that has none.

    A momentum buffer without a counter comes from a checkpoint, of torch.optim.SGD or of ours: the
    buffer is not fresh, and Lookahead begins a whole cycle. `wide` as in `counter_dtype`.
    """
    begun = state.get("momentum_buffer") is not None
    count = max(1, Options.of(group).lookahead_k) if begun else 0
    return torch.tensor(count, dtype=counter_dtype(None, wide), device=device)


def counter_dtype(step: Any, wide: bool) -> torch.dtype:
    """What a step counter is kept in: float32, as torch's fused steps make it, or more if needed.

    A float32 stops at 2**24. Torch's bias corrections are 1 by then; Lookahead counts on.

    Args:
        step: the counter; a float64 stays one.
        wide: whether any group of the optimizer uses Lookahead. One answer for all groups, since
            counters of two dtypes would need more buckets.
    """
    wide = wide or (isinstance(step, Tensor) and step.dtype == torch.float64)
    return torch.float64 if wide else torch.float32


def needs_wide_counters(groups: list[Group]) -> bool:
    """Whether step counters must go on behind 2**24."""
    return any(Options.of(group).lookahead_k for group in groups)


def drop_unused(state: dict[str, Any], group: Group) -> None:
    """Forgets slow or averaged weights whose option is off: on again, they begin anew."""
    for name in (SLOW_WEIGHTS, EMA_WEIGHTS):
        if name not in extras(group):
            state.pop(name, None)


def prepare(
    algorithm: Algorithm,
    state: dict[str, Any],
    param: Tensor,
    names: tuple[str, ...],
    group: Group,
    defaults: Group,
) -> None:
    """Makes every entry exist on the parameter's device and in its layout, for the kernels.

    What `check_state` refuses must not come here.

    Args:
        algorithm: says which numbers there are, and what everything begins as.
        state: the parameter's state, changed in place.
        param: the parameter.
        names: the states the rule holds.
        group: its options say which weights of ours are kept; they start as the parameter.
        defaults: the optimizer's.
    """
    for name in names:
        if state.get(name) is None:
            begin = algorithm.begin(name, group, defaults)
            state[name] = torch.full_like(param, begin, memory_format=torch.preserve_format)
    drop_unused(state, group)
    for name in extras(group):
        if state.get(name) is None:
            state[name] = new_weights(name, param)
    for name in (*names, *extras(group)):
        state[name] = relaid(state[name].to(param.device), param)
    dtype = _number_dtype([state[name] for name in algorithm.numbers if name in state])
    for name in algorithm.numbers:
        number = state.get(name)
        if number is None:
            number = algorithm.begin(name, group, defaults)
        number = torch.as_tensor(number, dtype=dtype, device=param.device)
        state[name] = number.resolve_neg()


def _number_dtype(numbers: list[Any]) -> torch.dtype:
    """One for all numbers of a state: float32, unless one is float64, or would be made so."""
    dtypes = {getattr(number, "dtype", None) for number in numbers}
    wide = torch.float64 in (dtypes or {torch.get_default_dtype()})
    return torch.float64 if wide else torch.float32
