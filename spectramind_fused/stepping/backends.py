"""Which backend serves a device, a group's options and a parameter, and why not a faster one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectramind_fused.kernels import BACKENDS, Backend
from spectramind_fused.multi_tensor import PLAIN, is_dense
from spectramind_fused.multi_tensor.factoring import MOST_ALONE, MOST_IN_LINE, Layout
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.shards import is_dtensor, local, splits_matrices


class Choice(NamedTuple):
    """The backend of a device (None: eager), and why it is not another."""

    backend: Backend | None
    reason: str


class Backends:
    """What serves the parameters of one optimizer."""

    def __init__(self, asked: str, algorithm: Algorithm) -> None:
        """Chooses nothing yet.

        Args:
            asked: "auto", "eager", "torch" or a backend.
            algorithm: what is to be stepped.
        """
        self.asked = asked
        self._algorithm = algorithm
        self._choices: dict[torch.device, Choice] = {}

    def on(self, device: torch.device) -> Choice:
        """The backend for the tensors of a device.

        Raises:
            ValueError: as in `choose`.
        """
        if device not in self._choices:
            self._choices[device] = choose(self.asked, device, self._algorithm)
        return self._choices[device]

    def have_kernels(self, param: Tensor) -> bool:
        """Whether any kernel serves tensors of this device and dtype."""
        backend = self.on(param.device).backend
        return backend is not None and not backend.unsupported(param.dtype)

    def why_eager(self, group: Group, param: Tensor) -> str:
        """Why torch's own step serves this parameter; empty where a kernel does.

        Raises:
            ValueError: a backend was named and cannot serve the parameter.
        """
        backend, reason = self.on(param.device)
        reason = _eager_by_option(group, param) or reason
        if reason or backend is None:
            return reason or "no kernel backend"
        reason = _eager_by_parameter(backend, param)
        reason = reason or _eager_by_algorithm(self._algorithm.of(param, group), param)
        if reason and self.asked != "auto":
            raise ValueError(
                f"backend={self.asked!r} cannot serve a parameter of shape {tuple(param.shape)}: "
                f"{reason}. backend='auto' leaves it to torch."
            )
        return reason

    @property
    def _without_kernels(self) -> str:
        """What serves where no kernel does."""
        return "eager" if self.asked == "eager" else "torch"

    def describe(self, groups: list[Group]) -> dict[str, str]:
        """For each device a line: the backend, why no kernels, and how many torch serves."""
        lines = {}
        for device in dict.fromkeys(p.device for group in groups for p in group["params"]):
            backend, reason = self.on(device)
            name = backend.name if backend else self._without_kernels
            line = f"{name}{f' ({reason})' if reason else ''}"
            whys = [
                self.why_eager(group, p)
                for group in groups
                for p in group["params"]
                if p.device == device
            ]
            if backend is not None and any(whys):
                reasons = "; ".join(dict.fromkeys(filter(None, whys)))
                line += f", torch for {sum(map(bool, whys))} of {len(whys)} parameters ({reasons})"
            lines[str(device)] = line
        return lines


def choose(name: str, device: torch.device, algorithm: Algorithm) -> Choice:
    """The backend that `name` means for tensors on `device`.

    Args:
        name: "auto", "eager", "torch" or a backend.
        device: where the parameters are.
        algorithm: what is to be stepped.

    Raises:
        ValueError: `name` is unknown, or names a backend that cannot run on `device`.
    """
    if name in ("eager", "torch"):
        return Choice(None, f"backend={name!r} was asked for")
    if name == "auto":
        if not algorithm.rules:
            return Choice(None, f"{algorithm.name} has no kernels")
        reasons = []
        for backend in BACKENDS.values():
            if not backend.prefers(device):
                continue  # not even asked: Triton starts the driver of a GPU to answer
            reason = _why_not(backend, device, algorithm)
            if not reason:
                return Choice(backend, "")
            reasons.append(reason)
        return Choice(None, "; ".join(reasons))
    if name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS, "torch", "eager"])
        raise ValueError(f"Unknown backend {name!r}: choose one of {known}.")
    if not algorithm.rules:
        raise ValueError(
            f"backend={name!r} has no kernels for {algorithm.name}: leave backend out."
        )
    reason = _why_not(BACKENDS[name], device, algorithm)
    if reason:
        raise ValueError(f"backend={name!r} cannot run: {reason}. backend='auto' falls back.")
    return Choice(BACKENDS[name], "")


def _why_not(backend: Backend, device: torch.device, algorithm: Algorithm) -> str | None:
    """Why a backend cannot step an algorithm on a device, or None where it can."""
    if reason := backend.unavailable(device):
        return reason
    missing = sorted(rule for rule in algorithm.rules if not backend.has_rule(rule))
    if missing:
        return (
            f"the {backend.name} kernels lack the rule {missing[0]!r}; reinstall spectramind_fused"
        )
    return None


def _eager_by_option(group: Group, param: Tensor) -> str:
    """Which option of the user's asks for torch's own step; empty if none does."""
    if group.get("foreach"):
        return "foreach=True means torch's foreach step"
    if group.get("differentiable"):
        return "differentiable=True means torch's differentiable step"
    if group.get("capturable") and param.device.type == "cpu":
        return "capturable=True, which torch refuses on a CPU"
    return ""


def _eager_by_matrix(param: Tensor) -> str:
    """Why no kernel serves a tensor whose step is as long as it is; empty if one does."""
    if is_dtensor(param):
        return "it is a DTensor, and its step is as long as all of it"
    layout = Layout.of(param) if param.dim() > 1 else None
    if layout is not None and layout.alone > MOST_ALONE:
        return "other dimensions lie between rows and columns of large matrices in memory"
    if layout is not None and layout.line > MOST_IN_LINE:
        return "its rows have more than 2^30 elements"
    return ""


def _eager_by_parameter(backend: Backend, param: Tensor) -> str:
    """Why this backend's kernels cannot serve a parameter; empty if they can."""
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


def _eager_by_algorithm(algorithm: Algorithm, param: Tensor) -> str:
    """Why kernels of whole matrices cannot serve a parameter; empty if they can."""
    if algorithm.momentum is not None and splits_matrices(param):
        return (
            "its matrices lie in parts on several ranks, and torch's own step gathers them at each "
            "product (Dion and Megatron's Emerging-Optimizers have sharded Newton-Schulz)"
        )
    return _eager_by_matrix(param) if algorithm.measured else ""
