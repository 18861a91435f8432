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
from spectramind_fused.stepping.shards import local
from spectramind_fused.stepping.state import EMA_WEIGHTS, SLOW_WEIGHTS


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


def check_members(algorithm: Algorithm, members: Members) -> None:
    """Refuses parameters and gradients on which torch's step would fail halfway, or crash.

    Args:
        algorithm: what the optimizer's class is.
        members: those that take part.

    Raises:
        RuntimeError: a gradient is sparse and the torch class takes none, or does not fit its
            parameter; a parameter is expanded; one of them has no memory.
    """
    if algorithm.sparse_hint and any(grad.is_sparse for grad in members.grads):
        raise RuntimeError(
            f"{algorithm.name} does not support sparse gradients; {algorithm.sparse_hint}."
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


def check_state(
    algorithm: Algorithm, state: dict[str, Any], param: Tensor, names: tuple[str, ...]
) -> None:
    """Refuses a state that no step can be taken with.

    Args:
        algorithm: what steps it; without a rule torch alone knows what a state is.
        state: the parameter's.
        param: the parameter.
        names: the states its rule holds.

    Raises:
        ValueError: an entry has another shape than the parameter, is no tensor or is missing; the
            step counter is not one number, or not a number of steps.
        RuntimeError: an entry has no memory.
    """
    if not algorithm.rule:
        return
    if algorithm.torch_counts_steps:
        _check_complete(state, param, ("step", *names, *algorithm.numbers))
    if "step" in state:
        if isinstance(state["step"], Tensor):
            check_memory("The step counter of a parameter", state["step"])
        check_counter(state["step"], param.shape)
    for name in algorithm.numbers:
        if name in state:
            check_number(name, state[name], param)
    for name in (*names, SLOW_WEIGHTS, EMA_WEIGHTS):
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
    begun = [name for name in names if state.get(name) is not None]
    missing = [name for name in names if state.get(name) is None]
    if begun and missing:
        raise ValueError(
            f"The state of a parameter of shape {tuple(param.shape)} has {begun[0]!r} and no "
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
