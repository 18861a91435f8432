"""What torch's load_state_dict leaves to a drop-in class: refusing, keeping, owning."""

from __future__ import annotations

from collections.abc import Container, MutableMapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.stepping.algorithm import ALWAYS, Algorithm, Group
from spectramind_fused.stepping.options import (
    EMA_DTYPE,
    KEYS,
    SEED,
    STATE_DTYPE,
    STORAGE_KEYS,
)
from spectramind_fused.stepping.options import (
    MASTER_WEIGHTS as MASTER_OPTION,
)
from spectramind_fused.stepping.refusals import bad_counter, check_counter, check_number
from spectramind_fused.stepping.storage import (
    CODES,
    EMA_WEIGHTS,
    MASTER_WEIGHTS,
    MASTERS,
    PARAM,
    SCALES,
    SLOW_WEIGHTS,
    average_dtype,
    begun,
    entries_of,
    may_be_of,
    read,
)
from spectramind_fused.stepping.vectors import misfit_of

# Options whose absence tells a checkpoint of another optimizer; older torch versions lack
# the others.
_IDENTIFYING_OPTIONS = (
    "lr", "betas", "eps", "momentum", "dampening", "weight_decay", "nesterov", "alpha", "rho",
    "lambd", "lr_decay", "etas", "momentum_decay", "beta2_decay", "ns_steps", "amsgrad",
)  # fmt: skip
_OF_MOMENTS = {STATE_DTYPE, MASTER_OPTION}  # options that say in what moments are kept


def check_loadable(
    algorithm: Algorithm,
    defaults: dict[str, Any],
    groups: list[Group],
    state_dict: dict[str, Any],
) -> None:
    """Refuses a checkpoint of another optimizer or of other parameters, before any change.

    Args:
        algorithm: what the optimizer's class is.
        defaults: the optimizer's.
        groups: likewise.
        state_dict: the checkpoint.

    Raises:
        ValueError: says what does not match.
    """
    for group, live_group in zip(state_dict["param_groups"], groups, strict=False):
        of_group = algorithm.of_group(live_group)
        # A group that AdamW steps beside Muon has AdamW's options.
        as_all = of_group.hyperparameters == algorithm.hyperparameters
        known: Container[str] = defaults if as_all else of_group.hyperparameters
        for key in _IDENTIFYING_OPTIONS:
            if key in known and key not in group and not _is_older(group, key):
                _refuse(algorithm, "lacks", key)
            if key in group and key not in live_group:  # a user may have put it there, unused
                _refuse(algorithm, "has", key)
        if len(group.get("betas", ())) != len(live_group.get("betas", ())):
            _refuse(algorithm, "has other", "betas")
    slots = (PARAM, SLOW_WEIGHTS, EMA_WEIGHTS, *algorithm.every_state)
    ours = set().union(*map(entries_of, slots))
    saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    live = ((group, param) for group in groups for param in group["params"])
    for index, (group, param) in zip(saved, live, strict=False):  # torch compares how many
        held = state_dict["state"].get(index, {})
        _check_entries(algorithm.of(param, group), held)
        _check_saved_counter(algorithm, held, param, group)
        for name in algorithm.numbers:
            if name in held:
                check_number(name, held[name], param)
        _check_vectors(algorithm.of(param, group), index, held, param)
        for key, value in held.items():
            if wrong := _damaged(key, value) if key in ours else "":
                raise ValueError(
                    f"This checkpoint is damaged: {key!r} of parameter {index} is {wrong}: load "
                    "another one."
                )
            if isinstance(value, Tensor) and key in ours and not may_be_of(key, value, param):
                raise ValueError(
                    f"This checkpoint is of other parameters: {key!r} of parameter {index} has "
                    f"shape {tuple(value.shape)}, the parameter {tuple(param.shape)}."
                )


def _check_entries(algorithm: Algorithm, held: Any) -> None:
    """Refuses a state that has some of what a parameter's has, and not all of it."""
    if not _is_of_parameter(held):
        return
    vectors, numbers = {*algorithm.vectors}, {*algorithm.numbers}
    known = {*algorithm.states, *numbers, *vectors}
    always = known - {name for name, option in algorithm.states.items() if option is not ALWAYS}
    if found := {name for name in known if {name, name + CODES} & held.keys()}:
        empty = {name for name in found - numbers - vectors if not begun(held, name)}
        for key in sorted(always - (found - empty)):
            _refuse(algorithm, "lacks the state", key)


def _check_vectors(algorithm: Algorithm, index: int, held: dict[str, Any], param: Tensor) -> None:
    for name in algorithm.vectors:
        wrong = misfit_of(algorithm, name, held[name], param) if name in held else ""
        if wrong:
            raise ValueError(
                f"This checkpoint is damaged, or of other parameters: {name!r} of parameter {index}"
                f", of shape {tuple(param.shape)}, is {wrong}."
            )


def _damaged(key: str, value: Any) -> str:
    """What no step can be taken with, in words; torch casts moments, so those may be anything."""
    if value is None:
        return ""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__} and no tensor"
    fractions = value.is_floating_point() or value.is_complex()
    return "" if fractions or key not in (SLOW_WEIGHTS, EMA_WEIGHTS) else f"{value.dtype}"


def _is_older(group: Group, key: str) -> bool:
    """Before Adam had `amsgrad` (torch 0.4) nothing had `maximize` (1.11); RAdam never has it."""
    return key == "amsgrad" and "maximize" not in group


def _is_of_parameter(entry: Any) -> bool:
    """A user, or a hook, may keep something else in the state beside what parameters have."""
    return isinstance(entry, dict)


def _check_saved_counter(
    algorithm: Algorithm, state: dict[str, Any], param: Tensor, group: Group
) -> None:
    if not algorithm.rule:
        return
    if "step" in state:
        check_counter(state["step"], param.shape, wait=True)
    elif algorithm.of(param, group).torch_counts_steps and state.keys() & {
        *algorithm.every_state,
        *algorithm.vectors,
    }:
        raise bad_counter("is missing", param.shape)


def _refuse(algorithm: Algorithm, verb: str, key: str) -> None:
    raise ValueError(
        f"This checkpoint is of another optimizer: it {verb} {key!r}, unlike "
        f"{algorithm.name}. Load it into the class that wrote it."
    )


def keep_live_options(
    groups: list[Group], saved: list[Group], live: list[Group], own: tuple[str, ...]
) -> None:
    """Puts back which implementation runs, and options of ours that the checkpoint has not.

    So are those that a class has beyond torch's (`own`). In what everything is stored is a matter
    of the implementation: a step converts what it finds.
    """
    for group, saved_group, live_group in zip(groups, saved, live, strict=True):
        for key in STORAGE_KEYS:
            group.pop(key, None)
        lacking = {*KEYS, *own} - saved_group.keys()
        kept = {"foreach", "fused", *STORAGE_KEYS, *lacking}
        group.update({key: live_group[key] for key in kept & live_group.keys()})


def check_seed(live: list[Group], saved: list[Group]) -> None:
    """Refuses a checkpoint whose random bits would go on as others.

    Raises:
        ValueError: says both seeds.
    """
    for group, saved_group in zip(live, saved, strict=False):
        seeds = group.get(SEED), saved_group.get(SEED)
        if None not in seeds and seeds[0] != seeds[1]:
            raise ValueError(
                f"This checkpoint was written with seed={seeds[1]}, and this optimizer has "
                f"seed={seeds[0]}: give seed={seeds[1]}, so that its random bits go on."
            )


def in_full_precision(
    algorithm: Algorithm,
    groups: list[Group],
    states: MutableMapping[Tensor, dict[str, Any]],
    state_dict: dict[str, Any],
) -> dict[str, Any]:
    """A checkpoint without codes, remainders and 16-bit states: everything is float32.

    Args:
        algorithm: what the optimizer's class is.
        groups: its groups.
        states: of its parameters.
        state_dict: of it; left as it is.
    """
    entries, saved_groups = dict(state_dict["state"]), []
    for group, saved in zip(groups, state_dict["param_groups"], strict=True):
        saved_groups.append({k: v for k, v in saved.items() if k not in STORAGE_KEYS})
        for index, param in zip(saved["params"], group["params"], strict=True):
            if index in entries:
                entries[index] = _full(
                    algorithm.of(param, group), states[param], entries[index], param
                )
    return {**state_dict, "state": entries, "param_groups": saved_groups}


def _full(
    algorithm: Algorithm, state: dict[str, Any], entry: dict[str, Any], param: Tensor
) -> dict[str, Any]:
    slots = (*algorithm.states, SLOW_WEIGHTS, EMA_WEIGHTS)
    stored = MASTERS.union(*map(entries_of, slots))
    full = {key: value for key, value in entry.items() if key not in stored}
    full |= {name: read(name, state, param).clone() for name in slots if begun(state, name)}
    for name in algorithm.vectors:
        if name in full:
            full[name] = full[name].to(torch.promote_types(full[name].dtype, torch.float32))
    if state.keys() & MASTERS:
        full[MASTER_WEIGHTS] = read(PARAM, state, param).clone()
    return full


def unshare_state(
    algorithm: Algorithm,
    groups: list[Group],
    state_of: MutableMapping[Tensor, dict[str, Any]],
    state_dict: dict[str, Any],
) -> None:
    """Copies what torch's load left shared with the checkpoint, or between parameters.

    Slow and averaged weights, numbers, codes and what is kept beside a parameter get back the dtype
    they were saved in; states, too, where an option says in what they are kept. Torch casts all
    state but the step to the parameter's dtype, which would change how a run resumes.
    Float64 step counters stay float64: torch rounds them if `fused` or `capturable` is set.
    """
    saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    live = chain.from_iterable(group["params"] for group in groups)
    kept = {SLOW_WEIGHTS, EMA_WEIGHTS, *algorithm.numbers, *algorithm.vectors, *MASTERS}
    kept |= {name + part for name in algorithm.every_state for part in (CODES, SCALES)}
    low = {p for g in groups if g.keys() & _OF_MOMENTS for p in g["params"]}
    pairs = zip(groups, state_dict["param_groups"], strict=True)
    # Weights that an option kept in 16 bits, which is off now.
    off = {p for g, s in pairs if EMA_DTYPE in s and EMA_DTYPE not in g for p in g["params"]}
    for index, param in zip(saved, live, strict=True):
        kept_here = kept | algorithm.every_state if param in low else kept
        for name, value in state_dict["state"].get(index, {}).items():
            wide_step = name == "step" and getattr(value, "dtype", None) == torch.float64
            if wide_step or (name in kept_here and isinstance(value, Tensor)):
                state_of[param][name] = value.to(param.device, copy=True)
                if param in off and name in (SLOW_WEIGHTS, EMA_WEIGHTS):
                    dtype = average_dtype(param) if name == EMA_WEIGHTS else param.dtype
                    state_of[param][name] = value.to(param.device, dtype)
    seen = {
        id(value)
        for state in filter(_is_of_parameter, state_dict["state"].values())
        for value in state.values()
        if isinstance(value, Tensor)
    }
    for state in filter(_is_of_parameter, state_of.values()):
        for key, value in state.items():
            if isinstance(value, Tensor):
                if id(value) in seen:
                    state[key] = value.clone()
                seen.add(id(value))
