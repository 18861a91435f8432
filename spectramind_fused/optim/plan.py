"""Which kernel serves which parameter: sorted once, and again whenever anything changed."""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import Bucket, Gradients, Reduction
from spectramind_fused.optim.amp import Scaling
from spectramind_fused.optim.choice import PLAIN
from spectramind_fused.optim.eager import eager_step, judge, zero_grads
from spectramind_fused.optim.norm import NormPass
from spectramind_fused.optim.state import EMA_WEIGHTS, SLOW_WEIGHTS, extras, prepare, weights_dtype

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep


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
            prepare(state, param, names, group)
            key = (param.device, names, _dtypes(state, param, grad, names))
            buckets.setdefault(key, []).append(entry)
        self._buckets = [
            _PlannedBucket(optimizer, names, dtypes, entries)
            for (_, names, dtypes), entries in buckets.items()
        ]
        self._norm = NormPass([(b.tables.device, len(b.tables.chunks)) for b in self._buckets])
        self._remember(optimizer, params, grads)

    def _kernels_serve(self, optimizer: FusedStep, entry: _Entry) -> bool:
        param, grad = entry.param, entry.grad
        group = optimizer.param_groups[entry.group]
        if grad.layout is not torch.strided or type(grad) not in PLAIN:
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
        others = [grad, *(state[n] for n in (*names, SLOW_WEIGHTS, EMA_WEIGHTS) if n in state)]
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
        """One step: two launches per bucket, three where the norm of the gradients is needed."""
        scaling = Scaling.of(optimizer)
        self.refresh_hyperparameters(optimizer)
        for bucket in self._buckets:
            bucket.point_at(grads)

        reduced = scaling.check or optimizer.clip_grad_norm is not None
        total = None
        if reduced:
            for bucket, first in zip(self._buckets, self._norm.first_rows, strict=True):
                bucket.norm(self._norm.reductions, first)
            total = self._norm.combine([p.grad for p in self.eager if p.grad is not None])
        if self.eager:
            device = self.eager[0].device
            verdict = judge(total, scaling.on(device), optimizer.clip_grad_norm)
            with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
                eager_step(optimizer, self.eager, verdict)
        for bucket in self._buckets:
            bucket.step(self._norm.reductions, scaling, reduced)

        if reduced:
            optimizer._grad_norm = torch.zeros(())
            if self.eager:
                optimizer._grad_norm = verdict.norm
                optimizer._nonfinite_per_device[device] = verdict.nonfinite
            for device, reduction in self._norm.reductions.items():
                optimizer._grad_norm = reduction.norm
                optimizer._nonfinite_per_device[device] = reduction.nonfinite

    def refresh_hyperparameters(self, optimizer: FusedStep) -> None:
        """Uploads the hyperparameters that changed."""
        rows = [_row(optimizer, group) for group in optimizer.param_groups]
        for bucket in self._buckets:
            bucket.tables.set_hyperparameters(rows)


class _PlannedBucket:
    """A bucket with its tables, and where its gradients stand in the list of all."""

    def __init__(
        self,
        optimizer: FusedStep,
        names: tuple[str, ...],
        dtypes: tuple[tuple[str, torch.dtype], ...],
        entries: list[_Entry],
    ) -> None:
        states = [optimizer.state[e.param] for e in entries]
        wanted = {name for e in entries for name in extras(optimizer.param_groups[e.group])}
        self.params = [e.param for e in entries]
        self.positions = [e.position for e in entries]
        # Gradients that do not lie like their parameter are copied, at every step.
        self.copies = {
            i: torch.empty_like(e.param, dtype=e.grad.dtype, memory_format=torch.preserve_format)
            for i, e in enumerate(entries)
            if e.grad.stride() != e.param.stride() or e.grad.is_neg()
        }
        slots = {"param": self.params, "grad": [e.grad for e in entries]}
        for name in ("step", *names):
            slots[name] = [s[name] for s in states]
        for name in (SLOW_WEIGHTS, EMA_WEIGHTS):
            if name in wanted:  # whose group has none needs an address there, and no memory
                slots[name] = [s.get(name, p) for s, p in zip(states, self.params, strict=True)]
        bucket = Bucket(
            rule=optimizer.rule,
            states=len(names),
            lookahead=SLOW_WEIGHTS in wanted,
            ema=EMA_WEIGHTS in wanted,
            zero_grads=optimizer.zero_grads,
            slots=tuple(slots.values()),
            dtypes=tuple(map(dict(dtypes).__getitem__, slots)),
            groups=[e.group for e in entries],
        )
        backend = optimizer._choice(bucket.device).backend
        assert backend is not None
        self.backend = backend
        self.tables = backend.tables(bucket)

    def point_at(self, grads: list[Tensor]) -> None:
        addresses = [grads[position].data_ptr() for position in self.positions]
        for i, copy in self.copies.items():
            addresses[i] = copy.copy_(grads[self.positions[i]]).data_ptr()
        self.tables.set_gradients(addresses)

    def norm(self, reductions: dict[torch.device, Reduction], first: int) -> None:
        self.backend.norm(self.tables, reductions[self.tables.device], first)

    def step(
        self, reductions: dict[torch.device, Reduction], scaling: Scaling, reduced: bool
    ) -> None:
        device = self.tables.device
        grad_scale, found_inf, check = scaling.on(device)
        self.backend.advance(
            self.tables, reductions[device], Gradients(reduced, grad_scale, found_inf, check)
        )
        self.backend.update(self.tables)
        torch.autograd.graph.increment_version(self.params)
        if self.tables.zero_grads:
            zero_grads([self.params[i] for i in self.copies])


def _dtypes(
    state: dict[str, Any], param: Tensor, grad: Tensor, names: tuple[str, ...]
) -> tuple[tuple[str, torch.dtype], ...]:
    """The dtype of each slot; of one that the parameter does not have, what it would be."""
    held = {"param": param.dtype, "grad": grad.dtype, "step": torch.float32}
    held |= {name: state[name].dtype for name in names}
    for name in (SLOW_WEIGHTS, EMA_WEIGHTS):
        held[name] = state[name].dtype if name in state else weights_dtype(name, param)
    return tuple(held.items())


def _row(optimizer: FusedStep, group: dict[str, Any]) -> tuple[Any, ...]:
    """A group's row of the hyperparameter table: the common columns, then the rule's."""
    max_norm, decay = optimizer.clip_grad_norm, group["ema_decay"]
    common = (
        group["maximize"],
        float("inf") if max_norm is None else max_norm,
        group["lookahead_k"],
        group["lookahead_alpha"],
        -1 if decay is None else decay,
    )
    return (*common, *optimizer._hyperparameters(group))


def _signatures(optimizer: FusedStep) -> list[tuple[Any, ...]]:
    """What of each group decides how its parameters are sorted."""
    return [
        (
            optimizer._states(group),
            extras(group),
            optimizer.zero_grads,
            group.get("foreach"),
            group["differentiable"],
            group.get("capturable"),
        )
        for group in optimizer.param_groups
    ]


def _key(param: Tensor, grad: Tensor) -> tuple[Any, ...]:
    """What of a parameter and its gradient must stay; only the gradient's address may move."""
    if grad.layout is not torch.strided or type(grad) not in PLAIN:
        return (type(grad), grad.layout)
    return (param.data_ptr(), grad.dtype, grad.stride(), grad.is_neg())
