"""Which backend serves a device, a group's options and a parameter, and why not a faster one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.kernels import BACKENDS, Backend
from spectramind_fused.multi_tensor import PLAIN, is_dense
from spectramind_fused.optim.shards import is_dtensor, local


class Choice(NamedTuple):
    """The backend of a device (None: eager), and why it is not another."""

    backend: Backend | None
    reason: str


def choose(name: str, device: torch.device, optimizer: str, rule: str) -> Choice:
    """The backend that `name` means for tensors on `device`.

    Args:
        name: "auto", "eager" or a backend.
        device: where the parameters are.
        optimizer: name of the class, for messages.
        rule: of the kernels; empty where there are none.

    Raises:
        ValueError: `name` is unknown, or names a backend that cannot run on `device`.
    """
    if name == "eager":
        return Choice(None, "backend='eager' was asked for")
    if name == "auto":
        if not rule:
            return Choice(None, f"{optimizer} has no kernels")
        reasons = []
        for backend in BACKENDS.values():
            reason = backend.unavailable(device)
            if reason:
                reasons.append(reason)
            elif backend.prefers(device):
                return Choice(backend, "")
        return Choice(None, "; ".join(reasons))
    if name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS, "eager"])
        raise ValueError(f"Unknown backend {name!r}: choose one of {known}.")
    if not rule:
        raise ValueError(f"backend={name!r} has no kernels for {optimizer}: leave backend out.")
    reason = BACKENDS[name].unavailable(device)
    if reason:
        raise ValueError(f"backend={name!r} cannot run: {reason}. backend='auto' falls back.")
    return Choice(BACKENDS[name], "")


def eager_by_option(group: dict[str, Any], param: Tensor) -> str:
    """Which option of the user's asks for torch's own step; empty if none does."""
    if group.get("foreach"):
        return "foreach=True means torch's foreach step"
    if group.get("differentiable"):
        return "differentiable=True means torch's differentiable step"
    if group.get("capturable") and param.device.type == "cpu":
        return "capturable=True, which torch refuses on a CPU"
    return ""


def eager_by_need(backend: Backend, param: Tensor) -> str:
    """What about a parameter keeps it from this backend's kernels; empty if nothing does."""
    if is_dtensor(param) and any(p.is_partial() for p in param.placements):  # type: ignore[attr-defined]
        return "its values are still to be summed over ranks"
    param = local(param)
    if type(param) not in PLAIN:
        return f"a {type(param).__name__} is no plain tensor"
    if param.is_inference():
        return "torch forbids to change it, for it was made in inference mode"
    if param.is_neg():
        return "it is negated only when it is read (resolve_neg() makes it plain)"
    if not is_dense(param):
        return "its elements overlap or leave gaps in memory"
    return backend.unsupported(param.dtype) or ""
