"""The state of one parameter: torch's entries, and ours beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor.storages import AnyStorage, dtype_of
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.options import Options
from spectramind_fused.stepping.storage import (
    EMA_WEIGHTS,
    MASTERS,
    PARAM,
    SLOW_WEIGHTS,
    begin_master,
    begun,
    convert,
    entries_of,
    keys_of,
    read,
    storages_of,
    write,
)
from spectramind_fused.stepping.vectors import prepare_vectors

LOOKAHEAD_STEP = "lookahead_step"  # the count of a class that has no kernels


def extras(group: Group) -> tuple[str, ...]:
    """The entries that a group's options add to torch's."""
    options = Options.of(group)
    wanted = {SLOW_WEIGHTS: options.lookahead_k != 0, EMA_WEIGHTS: options.ema_decay is not None}
    return tuple(name for name, on in wanted.items() if on)


def keeps_counter(algorithm: Algorithm, group: Group) -> bool:
    """Whether the state has the step counter; if not, the optimizer keeps it apart."""
    options = Options.of(group)
    return algorithm.torch_counts_steps or options.lookahead_k != 0 or options.draws


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
    if not kept and not all(begun(state, name) for name in algorithm.states_of(group)):
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
    fresh = not begun(state, "momentum_buffer")
    count = 0 if fresh else max(1, Options.of(group).lookahead_k)
    return torch.tensor(count, dtype=counter_dtype(None, wide), device=device)


def counter_dtype(step: Any, wide: bool) -> torch.dtype:
    """What a step counter is kept in: float32, as torch's fused steps make it, or more if needed.

    A float32 stops at 2**24. Torch's bias corrections are 1 by then; Lookahead counts on.

    Args:
        step: the counter; a float64 stays one.
        wide: whether any group of the optimizer uses Lookahead, or draws random bits, which must
            not be the same at every step. One answer for all groups, since counters of two dtypes
            would need more buckets.
    """
    wide = wide or (isinstance(step, Tensor) and step.dtype == torch.float64)
    return torch.float64 if wide else torch.float32


def needs_wide_counters(groups: list[Group]) -> bool:
    """Whether step counters must go on behind 2**24."""
    return any(options.lookahead_k or options.draws for options in map(Options.of, groups))


def unused(group: Group) -> set[str]:
    """The entries of slow or averaged weights whose option is off: on again, they begin anew."""
    off = {SLOW_WEIGHTS, EMA_WEIGHTS} - set(extras(group))
    return set().union(*map(entries_of, off))


def drop_unused(state: dict[str, Any], group: Group) -> None:
    """Forgets them."""
    for key in unused(group) & state.keys():
        del state[key]


def begin_slot(
    name: str, storage: AnyStorage, state: dict[str, Any], param: Tensor, value: float | None
) -> None:
    """Fills a slot with a number, or, where that is None, with the parameter."""
    dtype = dtype_of(storage) if name in keys_of(name, storage) else torch.float32
    values = read(PARAM, state, param) if MASTERS & state.keys() else param.detach()
    values = values.to(dtype, copy=True, memory_format=torch.preserve_format)
    if value is not None:
        values.fill_(value)
    if name in keys_of(name, storage):
        state[name] = values
    else:
        write(name, storage, state, param, values)


def begin_again(
    algorithm: Algorithm, groups: list[Group], states: Mapping[Tensor, dict[str, Any]]
) -> None:
    """Fills what begins as a hyperparameter, such as lr, anew where no step has been counted.

    A kernel made it and skipped its step, and the hyperparameter may have changed since.
    """
    read = set(algorithm.hyperparameters)
    of = {name: str(source) for name, source in algorithm.begins.items() if source in read}
    for group in groups if of else ():  # most rules have none
        for state in (states.get(p, {}) for p in group["params"]):
            for name in of.keys() & state.keys():
                step, begin = state.get("step"), group[of[name]]
                held = torch.as_tensor(state[name])
                if isinstance(step, Tensor) and step.device.type != "cpu":  # no wait
                    state[name] = torch.where(step == 0, begin, held).to(held.dtype)
                elif is_zero(step):
                    state[name] = torch.full_like(held, float(begin))


def is_zero(counter: Any) -> bool:
    """Whether a count on the host is 0; of a GPU's this waits."""
    if counter is None or (isinstance(counter, Tensor) and counter.is_meta):
        return False
    return float(counter) == 0


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
    drop_unused(state, group)
    storages = storages_of(algorithm, group, param, state)
    for name in (PARAM, *names, *extras(group)):
        convert(name, storages[name], state, param)
    begin_master(storages[PARAM], state, param)
    for name in (*names, *extras(group)):
        if not begun(state, name):
            weights = name in (SLOW_WEIGHTS, EMA_WEIGHTS)
            begin = None if weights else algorithm.begin(name, group, defaults)
            begin_slot(name, storages[name], state, param, begin)
    dtype = _number_dtype([state[name] for name in algorithm.numbers if name in state])
    for name in algorithm.numbers:
        number = state.get(name)
        if number is None:
            number = algorithm.begin(name, group, defaults)
        number = torch.as_tensor(number, dtype=dtype, device=param.device)
        state[name] = number.resolve_neg()
    prepare_vectors(algorithm, state, param, group)


def _number_dtype(numbers: list[Any]) -> torch.dtype:
    """One for all numbers of a state: float32, unless one is float64, or would be made so."""
    dtypes = {getattr(number, "dtype", None) for number in numbers}
    wide = torch.float64 in (dtypes or {torch.get_default_dtype()})
    return torch.float64 if wide else torch.float32
