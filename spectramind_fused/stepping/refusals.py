"""Checks before a step: what cannot be stepped raises an error before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from spectramind_fused.multi_tensor import PLAIN, has_memory, overlaps_itself
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.inputs import Members
from spectramind_fused.stepping.options import Options, name_of
from spectramind_fused.stepping.shards import Sharding, local
from spectramind_fused.stepping.storage import (
    EMA_WEIGHTS,
    PARAM,
    SIXTEEN_BIT,
    SLOW_WEIGHTS,
    begun,
    entries_of,
    held_storage,
    keys_of,
    misfit,
)
from spectramind_fused.stepping.vectors import misfit_of


def check_fused(group: Group, param: Tensor) -> None:
    """Refuses `fused=True` for a device on which torch fuses nothing, as torch does.

    Raises:
        RuntimeError: says which devices it may be.
    """
    if not group.get("fused"):
        return
    devices = _get_fused_kernels_supported_devices()
    if param.device.type not in devices:
        raise RuntimeError(
            "`fused=True` requires all the params to be floating point Tensors of supported "
            f"devices: {devices} but {param.dtype} and {param.device.type}"
        )


def check_moments(algorithm: Algorithm, group: Group) -> None:
    """Refuses storage options that a class, or a group's rule, does not have.

    Raises:
        ValueError: says which and why.
    """
    options = Options.of(group)
    if not algorithm.rule:
        for name, value in options._asdict().items():
            on = value != getattr(Options(), name)
            if on and name in ("ema_dtype", "state_dtype", "master_weights", "stochastic_rounding"):
                raise ValueError(f"{algorithm.name} has no kernels: {name} is for those that have.")
    low = options.state_dtype is not None and name_of(options.state_dtype) != "float32"
    if low and not algorithm.has_moments(group):
        centered = " with centered=True" if group.get("centered") else ""
        raise ValueError(
            f"{algorithm.name}{centered} keeps no moments that may be rounded: state_dtype is None "
            "or 'float32' for it."
        )


def check_storage(group: Group) -> None:
    """Refuses master weights for parameters that have none.

    Raises:
        ValueError: says which dtype it needs.
    """
    master, dtypes = name_of(Options.of(group).master_weights), {p.dtype for p in group["params"]}
    if master == "split" and torch.float16 in dtypes:
        raise ValueError(
            "master_weights='split' is for bfloat16 parameters: give 'float32' for float16 ones."
        )
    if master is not None and dtypes and not dtypes & set(SIXTEEN_BIT):
        raise ValueError(
            f"master_weights={master!r} is for parameters in bfloat16 or float16; these are "
            f"{' and '.join(sorted(map(name_of, dtypes)))}: leave it out, or give their group "
            "master_weights=None."
        )


def check_members(algorithm: Algorithm, members: Members) -> None:
    """Refuses parameters and gradients on which torch's step would fail halfway, or crash.

    Args:
        algorithm: what the optimizer's class is.
        members: those that take part.

    Raises:
        RuntimeError: a gradient is sparse, or a parameter complex, and the torch class takes none;
            a parameter is split over ranks, and its step is as long as all of it; a gradient does
            not fit its parameter; a parameter is expanded; one of them has no memory.
    """
    if algorithm.sparse_hint and any(grad.is_sparse for grad in members.grads):
        raise RuntimeError(
            f"{algorithm.name} does not support sparse gradients; {algorithm.sparse_hint}."
        )
    if not algorithm.takes_complex and any(map(torch.is_complex, members.params)):
        raise RuntimeError(f"{algorithm.name} does not support complex parameters.")
    for param in members.params if algorithm.measured else ():
        if True in Sharding.of(param).split:
            raise RuntimeError(
                f"{algorithm.name} steps whole tensors, and a parameter of shape "
                f"{tuple(param.shape)} is split over ranks, where torch's own step fails or takes "
                "a part for the whole: leave it in one piece, or take another optimizer for it."
            )
    for param, grad in zip(members.params, members.grads, strict=True):
        if grad.shape != param.shape or grad.device != param.device:
            raise RuntimeError(
                f"A parameter of shape {tuple(param.shape)} on {param.device} has a gradient of "
                f"shape {tuple(grad.shape)} on {grad.device}: set its .grad to None after a "
                "change of its .data."
            )
    for param, grad in zip(members.local_params, members.local_grads, strict=True):
        check_param(param)
        check_gradient_memory(grad)


def check_param(param: Tensor) -> None:
    """Refuses a parameter that cannot be written to element by element.

    Raises:
        RuntimeError: it is expanded, or has no memory.
    """
    if overlaps_itself(param):
        raise RuntimeError(
            f"A parameter of shape {tuple(param.shape)} and strides {param.stride()} holds "
            "several elements at one address: clone() it before it becomes a parameter."
        )
    check_memory("A parameter", param)


def check_state(algorithm: Algorithm, state: dict[str, Any], param: Tensor, group: Group) -> None:
    """Refuses a state that no step can be taken with.

    Args:
        algorithm: what steps it; without a rule torch alone knows what a state is.
        state: the parameter's.
        param: the parameter.
        group: its group.

    Raises:
        ValueError: an entry has another shape than the parameter, is no tensor or is missing; the
            step counter is not one number, or not a number of steps.
        RuntimeError: an entry has no memory; the parameter is complex where matrices are wanted.
    """
    if not algorithm.rule:
        return
    if algorithm.check is not None:
        algorithm.check(param, group, state)
    if param.is_complex() and algorithm.momentum is not None:
        raise RuntimeError(f"{algorithm.name} does not support complex parameters.")
    names = algorithm.states_of(group)
    if algorithm.torch_counts_steps:
        _check_complete(state, param, ("step", *names, *algorithm.numbers, *algorithm.vectors))
    if "step" in state:
        if isinstance(state["step"], Tensor):
            check_memory("The step counter of a parameter", state["step"])
        check_counter(state["step"], param.shape)
    for name in algorithm.numbers:
        if name in state:
            check_number(name, state[name], param)
    for name in algorithm.vectors:
        if state.get(name) is not None:
            if wrong := misfit_of(algorithm, name, state[name], param):
                raise ValueError(
                    f"The state {name!r} of a parameter of shape {tuple(param.shape)} is {wrong}: "
                    "delete the parameter's state from optimizer.state, and it begins anew, or "
                    "load the checkpoint that belongs to this model."
                )
            check_memory(f"The state {name!r} of a parameter", state[name])
    for name in (PARAM, *names, SLOW_WEIGHTS, EMA_WEIGHTS):
        _check_rows(name, state, param)
        held = state.get(name)
        if held is None:
            continue
        what = tuple(held.shape) if isinstance(held, Tensor) else type(held).__name__
        if isinstance(held, Tensor) and held.is_meta != param.is_meta:
            what = f"{what} on {held.device}"
        if what != tuple(param.shape):
            raise ValueError(
                f"The state {name!r} of shape {what} does not fit its "
                f"parameter of shape {tuple(param.shape)}: delete it from optimizer.state, "
                "or load the checkpoint that belongs to this model."
            )
        check_memory(f"The state {name!r} of a parameter", held)
        if held.is_complex() != param.is_complex() or not (
            held.is_floating_point() or held.is_complex()
        ):
            raise ValueError(
                f"The state {name!r} of a parameter of shape {what} is {held.dtype}, the parameter "
                f"{param.dtype}: delete it from optimizer.state, and it begins anew."
            )


def _check_rows(name: str, state: dict[str, Any], param: Tensor) -> None:
    """Refuses entries of a storage that keeps several, where one does not fit the parameter."""
    found = entries_of(name) & state.keys()
    if not found or found == {name}:
        return
    storage = held_storage(name, state, param)
    wrong = misfit(name, storage, state, param) if storage else min(found)
    if wrong is not None:
        held = state.get(wrong)
        what = f"{held.dtype} {tuple(held.shape)}" if isinstance(held, Tensor) else "missing"
        raise ValueError(
            f"The state {wrong!r} of a parameter of shape {tuple(param.shape)} is {what}, which "
            "does not fit: delete the parameter's state from optimizer.state, and it begins anew, "
            "or load full_precision_state_dict() of the optimizer that wrote it."
        )
    for key in keys_of(name, storage):  # type: ignore[arg-type]
        check_memory(f"The state {key!r} of a parameter", state[key])


def check_number(name: str, held: Any, param: Tensor) -> None:
    """Refuses what a rule keeps of a tensor where it is not one number.

    Raises:
        ValueError: it is of another shape, complex, or something else.
        RuntimeError: it has no memory.
    """
    if isinstance(held, Tensor) and held.numel() == 1 and not held.is_complex():
        check_memory(f"The state {name!r} of a parameter", held)
    elif not isinstance(held, (int, float)):
        what = tuple(held.shape) if isinstance(held, Tensor) else type(held).__name__
        raise ValueError(
            f"The state {name!r} of a parameter of shape {tuple(param.shape)} is {what} and not "
            "one number: delete the parameter's state from optimizer.state, and it begins anew."
        )


def _check_complete(state: dict[str, Any], param: Tensor, names: tuple[str, ...]) -> None:
    """Torch begins a state as a whole, and never completes one."""
    held = [name for name in names if begun(state, name)]
    missing = [name for name in names if not begun(state, name)]
    if held and missing:
        raise ValueError(
            f"The state of a parameter of shape {tuple(param.shape)} has {held[0]!r} and no "
            f"{missing[0]!r}: an option was switched on after the first step, or an entry was "
            "lost. Delete the parameter's state from optimizer.state, and it begins anew."
        )


def check_counter(step: Any, shape: Iterable[int], wait: bool = False) -> None:
    """Refuses a step counter that is not one number, or counts no steps.

    Args:
        step: the counter.
        shape: of its parameter, for the message.
        wait: whether to look at the value of one that is on a GPU.

    Raises:
        ValueError: says what it is.
    """
    if isinstance(step, Tensor):
        if step.numel() != 1:
            raise bad_counter(f"has shape {tuple(step.shape)}", shape)
        if step.device.type == "meta" or (step.device.type != "cpu" and not wait):
            return
    try:
        count = float(step)
    except (TypeError, ValueError, RuntimeError):
        raise bad_counter(f"is {step!r}", shape) from None
    if not count >= 0 or (math.isfinite(count) and count != math.floor(count)):
        raise bad_counter(f"is {count:g}", shape)


def bad_counter(what: str, shape: Iterable[int]) -> ValueError:
    """The error for a damaged step counter: `what` says how it is."""
    return ValueError(
        f"The step counter of a parameter of shape {tuple(shape)} {what}, not a number of steps: "
        "load a checkpoint that is not damaged, or delete the parameter's state from "
        "optimizer.state, and it begins anew."
    )


def check_gradient_memory(grad: Tensor) -> None:
    """As `check_memory`; zeros that torch has not made yet are a gradient all the same."""
    if not grad._is_zerotensor():
        check_memory("The gradient of a parameter", grad)


def check_memory(what: str, tensor: Tensor) -> None:
    """Refuses a tensor whose storage does not reach to its last element.

    Raises:
        RuntimeError: says `what` it is.
    """
    tensor = local(tensor)
    if type(tensor) in PLAIN and tensor.layout is torch.strided and not has_memory(tensor):
        raise RuntimeError(
            f"{what} of shape {tuple(tensor.shape)} has no memory: its storage was resized. "
            "Give it memory again, or set .grad to None, before the step."
        )
