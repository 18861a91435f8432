"""What of an optimizer section reaches the constructor, checked against its signature."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from spectramind_fused.config.check import MOST_SEED, Section, shown
from spectramind_fused.optim import OPTIMIZERS, FusedStep, unfused

# `type` in a config is looked up here, then among the classes of torch.optim, and nowhere else:
# a config names no code.
TYPES = (*OPTIMIZERS, *unfused.NAMES)
# Whose weight decay never meets the gradient.
DECOUPLED = tuple(name for name, info in OPTIMIZERS.items() if info.decoupled)

# Arguments of the classes that the config has other keys for.
_NOT_LEAVES = (
    "params", "lookahead_k", "lookahead_alpha", "clip_grad_norm", "norm_group", "zero_grads",
    "fused", "split_sizes",
)  # fmt: skip
_NON_NEGATIVE = ("lr", "eps", "weight_decay", "momentum", "dampening", "alpha")
_STORAGE = ("state_dtype", "ema_dtype", "master_weights")
_OWN_STEP = ("foreach", "differentiable")  # ask for torch's own step


def optimizer_class(kind: str) -> type[FusedStep]:
    """The class that a `type` stands for, one of `TYPES`."""
    return OPTIMIZERS[kind].cls if kind in OPTIMIZERS else getattr(unfused, kind)


def arguments(kind: str) -> dict[str, Any]:
    """The arguments of a class that a config may set, with their defaults."""
    by_type = ("decoupled_weight_decay",) if kind == "Adam" else ()  # AdamW is that of Adam
    excluded = {*_NOT_LEAVES, *by_type}
    signature = inspect.signature(optimizer_class(kind)).parameters
    return {name: p.default for name, p in signature.items() if name not in excluded}


def read_hyperparameters(section: Section, kind: str, control: Iterable[str]) -> dict[str, Any]:
    """Every leaf that is no control key; what is wrong with them goes into the problems.

    Args:
        section: the optimizer's.
        kind: its type, one of `TYPES`.
        control: the keys that do not reach the constructor.
    """
    known = arguments(kind)
    section.known([*control, *known])
    for key in OPTIMIZERS[kind].required if kind in OPTIMIZERS else ():
        if key not in section.values:
            section.wrong(key, f"is required for {kind}")
    before = len(section.problems)
    leaves = {
        key: _leaf(section, key, default) for key, default in known.items() if key in section.values
    }
    _contradictions(section, kind, leaves)
    if len(section.problems) == before and "lr" in leaves:
        _check_by_constructor(section, kind, leaves)
    return leaves


def read_some(section: Section, kind: str, names: Iterable[str]) -> dict[str, Any]:
    """The leaves of a section that are arguments of another class; `patterns` may stand there, too.

    Args:
        section: inside the optimizer's.
        kind: whose arguments they are, one of `TYPES`.
        names: those that there may be.
    """
    names = tuple(names)
    section.known(["patterns", *names])
    known = arguments(kind)
    return {key: _leaf(section, key, known[key]) for key in names if key in section.values}


def _leaf(section: Section, key: str, default: Any) -> Any:
    """A value of the type that the default has."""
    if key == "ema_decay":
        return section.number(key, 0.0, most=1.0) if section.on(key) else None
    if key in _STORAGE:
        return section.values[key] if section.on(key, (None, False)) else None
    if key == "seed":
        return section.whole(key, 0, most=MOST_SEED)
    if key == "backend":
        return section.text(key, "auto")
    if key in _OWN_STEP:
        return section.flag(key) if section.on(key) else None
    if isinstance(default, bool):
        return section.flag(key, default)
    if isinstance(default, (int, float)):
        if isinstance(default, int) and key not in _NON_NEGATIVE and default > 1:
            return section.whole(key, default, least=1)
        least = 0.0 if key in _NON_NEGATIVE else float("-inf")
        return section.number(key, default, least=least)
    if isinstance(default, tuple) and not (
        key == "ns_coefficients" and isinstance(section.values[key], str)
    ):
        return _numbers(section, key, default)
    return section.values[key]


def _numbers(section: Section, key: str, default: tuple[Any, ...]) -> tuple[Any, ...]:
    """As many numbers as the default has; null only where it is null."""
    values = section.values[key]
    many = f"{len(default)} numbers"
    if key == "betas":
        many = "two numbers, each at least 0 and below 1"
    fits = isinstance(values, (list, tuple)) and len(values) == len(default)
    for value, usual in zip(values, default, strict=False) if fits else ():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        inside = key != "betas" or (number and 0 <= value < 1)
        fits = fits and ((number and inside) or (value is None and usual is None))
    if not fits:
        section.wrong(key, f"should be {many}, not {shown(values)}")
        return default
    return tuple(value if value is None else float(value) for value in values)


def _contradictions(section: Section, kind: str, leaves: dict[str, Any]) -> None:
    fused = section.values.get("fused") is True
    if "backend" in leaves and not fused:
        section.wrong("backend", "needs optimizer.fused=true")
    for key in _OWN_STEP:
        if leaves.get(key) and fused:
            section.wrong(key, "means torch's own step and contradicts optimizer.fused=true")
    still = not leaves.get("momentum", 0) or leaves.get("dampening")
    if kind == "SGD" and leaves.get("nesterov") and still:
        section.wrong("nesterov", "needs a momentum above 0 and a dampening of 0")


def _check_by_constructor(section: Section, kind: str, leaves: dict[str, Any]) -> None:
    """Builds the optimizer for a dummy parameter, and notes what its constructor rejects."""
    values = {key: value for key, value in leaves.items() if key != "backend"}
    clip = section.values.get("clip_grad_norm")
    if isinstance(clip, (int, float)) and 0 < clip <= sys.float_info.max:
        values["clip_grad_norm"] = float(clip)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said again when the real one is built
            dtype = torch.bfloat16 if values.get("master_weights") else torch.float32
            dummy = torch.zeros(1, 1, dtype=dtype, requires_grad=True)
            optimizer_class(kind)([dummy], **values)
    except (ValueError, TypeError, RuntimeError) as error:
        section.problems.append(f"optimizer: {str(error).rstrip('.')}.")
