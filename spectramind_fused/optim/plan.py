"""Which kernel serves which parameter: sorted once, and again whenever anything changed."""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.kernels import BACKENDS, Backend
from spectramind_fused.multi_tensor import Bucket, is_dense
from spectramind_fused.optim.state import SLOW_WEIGHTS, prepare

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep

_PLAIN = (Tensor, torch.nn.Parameter)


class Choice(NamedTuple):
    """The backend of a device (None: eager), and why it is not another."""

    backend: Backend | None
    reason: str


def choose(name: str, device: torch.device) -> Choice:
    """The backend that `name` means for tensors on `device`.

    Raises:
        ValueError: `name` is unknown, or names a backend that cannot run on `device`.
    """
    if name == "eager":
        return Choice(None, "backend='eager' was asked for")
    if name == "auto":
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
    reason = BACKENDS[name].unavailable(device)
    if reason:
        raise ValueError(f"backend={name!r} cannot run: {reason}. backend='auto' falls back.")
    return Choice(BACKENDS[name], "")


def eager_by_option(group: dict[str, Any], param: Tensor) -> str:
    """Which option of the user's asks for torch's own step; empty if none does."""
    if group.get("foreach"):
        return "foreach=True means torch's foreach step"
    if group["differentiable"]:
        return "differentiable=True means torch's differentiable step"
    if group.get("capturable") and param.device.type == "cpu":
        return "capturable=True, which torch refuses on a CPU"
    return ""


def eager_by_need(backend: Backend, param: Tensor) -> str:
    """What about a parameter keeps it from this backend's kernels; empty if nothing does."""
    if type(param) not in _PLAIN:
        return f"a {type(param).__name__} is no plain tensor"
    if not is_dense(param):
        return "its elements overlap or leave gaps in memory"
    return backend.unsupported(param.dtype) or ""


class _Entry(NamedTuple):
    position: int  # in the list of all parameters that take part
    param: Tensor
    grad: Tensor
    group: int


class Plan:
    """How a set of parameters is stepped, valid for as long as `fits` says so.

    Attributes:
        eager: the parameters that torch's own step serves.
        lasting: False where the next step must be planned anew.
    """

    def __init__(self, optimizer: FusedStep, params: list[Tensor], grads: list[Tensor]) -> None:
        self.eager: list[Tensor] = []
        self.lasting = True
        group_of = {p: i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
        listed_twice = len(set(params)) < len(params)  # two steps in one: not for a kernel
        buckets: dict[Any, list[_Entry]] = {}
        for position, (param, grad) in enumerate(zip(params, grads, strict=True)):
            entry = _Entry(position, param, grad, group_of[param])
            if listed_twice or not self._kernels_serve(optimizer, entry):
                self.eager.append(param)
                continue
            state = optimizer.state[param]
            group = optimizer.param_groups[entry.group]
            names = optimizer._states(group)
            prepare(state, param, names, group["lookahead_k"])
            held = (param, grad, *(state[name] for name in names), state.get(SLOW_WEIGHTS, param))
            key = (param.device, names, *(tensor.dtype for tensor in held))
            buckets.setdefault(key, []).append(entry)
        self._buckets = [_PlannedBucket(optimizer, entries) for entries in buckets.values()]
        self._remember(optimizer, params, grads)

    def _kernels_serve(self, optimizer: FusedStep, entry: _Entry) -> bool:
        param, grad = entry.param, entry.grad
        group = optimizer.param_groups[entry.group]
        if grad.layout is not torch.strided or type(grad) not in _PLAIN:
            self.lasting = False
            return False
        if optimizer.why_eager(group, param):
            return False
        state = optimizer.state.get(param, {})
        names = optimizer._states(group)
        if "step" in state and any(state.get(name) is None for name in names):
            self.lasting = False  # a state that begins late is begun by torch, then handed over
            return False
        backend = optimizer._choice(param.device).backend
        others = [grad, *(state[name] for name in (*names, SLOW_WEIGHTS) if name in state)]
        return backend is not None and not any(backend.unsupported(t.dtype) for t in others)

    def _remember(self, optimizer: FusedStep, params: list[Tensor], grads: list[Tensor]) -> None:
        served = set(params).difference(self.eager)
        self._params = params
        self._keys = list(map(_key, params, grads))
        self._groups = _signatures(optimizer)
        self._state = optimizer.state
        self._states = list(optimizer.state.values())
        self._held = [
            (state, name, value)
            for param, state in optimizer.state.items()
            if param in served
            for name, value in state.items()
        ]

    def fits(self, optimizer: FusedStep, params: list[Tensor], grads: list[Tensor]) -> bool:
        """Whether who takes part, and where it lies, is what the plan was built on."""
        state = optimizer.state
        return (
            self._state is state
            and len(params) == len(self._params)
            and all(map(is_, params, self._params))
            and self._keys == list(map(_key, params, grads))
            and self._groups == _signatures(optimizer)
            and len(self._states) == len(state)
            and all(map(is_, self._states, state.values()))
            and all(held.get(name) is value for held, name, value in self._held)
        )

    def run(self, optimizer: FusedStep, grads: list[Tensor]) -> None:
        """Runs the kernels: two launches per bucket."""
        rows = [_row(optimizer, group) for group in optimizer.param_groups]
        for bucket in self._buckets:
            bucket.run(grads, rows)


class _PlannedBucket:
    """A bucket with its tables, and where its gradients stand in the list of all."""

    def __init__(self, optimizer: FusedStep, entries: list[_Entry]) -> None:
        groups = optimizer.param_groups
        names = optimizer._states(groups[entries[0].group])
        states = [optimizer.state[e.param] for e in entries]
        self.params = [e.param for e in entries]
        self.positions = [e.position for e in entries]
        # Gradients that do not lie like their parameter are copied, at every step.
        self.copies = {
            i: torch.empty_like(e.param, dtype=e.grad.dtype, memory_format=torch.preserve_format)
            for i, e in enumerate(entries)
            if e.grad.stride() != e.param.stride() or e.grad.is_neg()
        }
        slots = [self.params, [e.grad for e in entries], [s["step"] for s in states]]
        slots += [[s[name] for s in states] for name in names]
        lookahead = any(groups[e.group]["lookahead_k"] for e in entries)
        if lookahead:  # who never syncs needs an address there, and no memory
            slots.append([optimizer.state[p].get(SLOW_WEIGHTS, p) for p in self.params])
        bucket = Bucket(
            rule=optimizer.rule,
            states=len(names),
            lookahead=lookahead,
            slots=tuple(slots),
            groups=[e.group for e in entries],
        )
        backend = optimizer._choice(bucket.device).backend
        assert backend is not None
        self.backend = backend
        self.tables = backend.tables(bucket)

    def run(self, grads: list[Tensor], rows: list[tuple[float, ...]]) -> None:
        addresses = [grads[position].data_ptr() for position in self.positions]
        for i, copy in self.copies.items():
            addresses[i] = copy.copy_(grads[self.positions[i]]).data_ptr()
        self.tables.set_gradients(addresses)
        self.tables.set_hyperparameters(rows)
        self.backend.advance(self.tables)
        self.backend.update(self.tables)
        torch.autograd.graph.increment_version(self.params)


def _row(optimizer: FusedStep, group: dict[str, Any]) -> tuple[float, ...]:
    """A group's row of the hyperparameter table: the common columns, then the rule's."""
    common = (group["maximize"], group["lookahead_k"], group["lookahead_alpha"])
    return tuple(map(float, (*common, *optimizer._hyperparameters(group))))


def _signatures(optimizer: FusedStep) -> list[tuple[Any, ...]]:
    """What of each group decides how its parameters are sorted."""
    return [
        (
            optimizer._states(group),
            bool(group["lookahead_k"]),
            group.get("foreach"),
            group["differentiable"],
            group.get("capturable"),
        )
        for group in optimizer.param_groups
    ]


def _key(param: Tensor, grad: Tensor) -> tuple[Any, ...]:
    """What of a parameter and its gradient must stay; only the gradient's address may move."""
    if grad.layout is not torch.strided or type(grad) not in _PLAIN:
        return (type(grad), grad.layout)
    return (param.data_ptr(), grad.dtype, grad.stride(), grad.is_neg())
