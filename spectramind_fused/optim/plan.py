"""Which kernel serves which parameter: sorted once, and again whenever anything changed."""

from __future__ import annotations

from collections.abc import Sequence
from operator import ge, itemgetter, or_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import (
    PLAIN,
    Bucket,
    Gradients,
    Reduction,
    has_memory,
    overlapping,
)
from spectramind_fused.optim.amp import Scaling
from spectramind_fused.optim.eager import Verdict, eager_step, judge, zero_grads
from spectramind_fused.optim.fingerprint import Fingerprint, Kept, Participants
from spectramind_fused.optim.norm import NormPass, Part
from spectramind_fused.optim.refusals import bad_counter, check_gradient_memory, check_state
from spectramind_fused.optim.shards import Sharding, alike, is_dtensor, local
from spectramind_fused.optim.state import (
    EMA_WEIGHTS,
    SLOW_WEIGHTS,
    counts_on,
    extras,
    prepare,
    weights_dtype,
)

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep


class _Entry(NamedTuple):
    position: int  # in the list of all parameters that take part
    group: int
    whole: Tensor  # the parameter, as the user holds it
    whole_grad: Tensor
    param: Tensor  # this rank's part of it, which a kernel steps
    grad: Tensor


class Plan:
    """How a set of parameters is stepped, valid for as long as `fits` says so.

    Attributes:
        eager: the parameters that torch's own step serves.
    """

    def __init__(self, optimizer: FusedStep, who: Participants) -> None:
        self.eager: list[Tensor] = []
        self._lasting = all(map(_is_plain, who.local_grads))
        group_of = {p: i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
        served: list[_Entry] = []
        for position, (param, *rest) in enumerate(zip(*who[3:], strict=True)):
            entry = _Entry(position, group_of[param], param, *rest)
            state = optimizer.state.get(param, {})
            names = optimizer._states(optimizer.param_groups[entry.group])
            check_state(optimizer, state, param, names)
            if self._kernels_serve(optimizer, entry):
                served.append(entry)
        # What is written by two threads at once is not for a kernel.
        shared = _sharing(optimizer, who) if served else set()
        zeroed_twice = overlapping(who.local_grads) if optimizer.zero_grads else set()
        served = [entry for entry in served if entry.position not in shared]
        taken = {entry.position for entry in served}
        self.eager = [p for position, p in enumerate(who.params) if position not in taken]

        buckets: dict[Any, list[_Entry]] = {}
        wide = counts_on(optimizer.param_groups)
        for entry in served:
            group = optimizer.param_groups[entry.group]
            names = optimizer._states(group)
            state = optimizer.state[entry.whole]
            prepare(state, entry.whole, names, group, wide)
            dtypes = _dtypes(state, entry.whole, entry.grad, names)
            sharding = Sharding.of(entry.whole)
            key = (entry.param.device, sharding, optimizer._rule(group), names, dtypes)
            buckets.setdefault(key, []).append(entry)
        self._buckets = [
            _PlannedBucket(optimizer, rule, names, dtypes, entries, zeroed_twice)
            for (_, _, rule, names, dtypes), entries in buckets.items()
        ]
        sums = [
            Part(bucket.tables.device, len(bucket.tables.pieces), sharding)
            for (_, sharding, *_), bucket in zip(buckets, self._buckets, strict=True)
        ]
        self._norm = NormPass(sums, list(map(Sharding.of, who.grads)))
        kept = [*(bucket.kept for bucket in self._buckets), _kept_eagerly(optimizer, self.eager)]
        self._built_on = Fingerprint.of(optimizer, who, kept) if self._lasting else None

    def _kernels_serve(self, optimizer: FusedStep, entry: _Entry) -> bool:
        param, grad = entry.whole, entry.grad
        group = optimizer.param_groups[entry.group]
        if not _is_plain(grad):
            return False
        if optimizer.why_eager(group, param) or not alike(entry.whole_grad, param):
            return False
        state = optimizer.state.get(param, {})
        names = optimizer._states(group)
        if "step" in state and any(state.get(name) is None for name in names):
            self._lasting = False  # a state that begins late is begun by torch, then handed over
            return False
        backend = optimizer._choice(param.device).backend
        held = [state[n] for n in (*names, *extras(group)) if state.get(n) is not None]
        held = [tensor for tensor in held if isinstance(tensor, Tensor)]  # else check_state refuses
        if not all(_is_plain(local(tensor)) and _split_alike(tensor, param) for tensor in held):
            return False
        dtypes = [grad.dtype, *(tensor.dtype for tensor in held)]
        return backend is not None and not any(map(backend.unsupported, dtypes))

    def fits(self, optimizer: FusedStep, who: Participants) -> bool:
        """Whether who takes part, and where it lies, is what the plan was built on."""
        return self._built_on is not None and self._built_on.fits(optimizer, who)

    def run(self, optimizer: FusedStep, who: Participants) -> None:
        """One step: two launches per bucket, three where the norm of the gradients is needed."""
        scaling = Scaling.of(optimizer)
        grads = who.local_grads
        for param in self.eager:
            if param.grad is not None:
                check_gradient_memory(param.grad)
        self.refresh_hyperparameters(optimizer)
        for bucket in self._buckets:
            bucket.check_counters(optimizer)
        for bucket in self._buckets:
            bucket.point_at(grads)

        reduced = scaling.check or optimizer.clip_grad_norm is not None
        total = self._reduce(optimizer) if reduced else None
        verdict = None
        if self.eager or (total is not None and not self._buckets):
            device = self.eager[0].device if total is None else total.device
            verdict = judge(total, scaling.on(device), optimizer.clip_grad_norm)
        if self.eager and verdict is not None:
            with torch.set_grad_enabled(optimizer.defaults.get("differentiable", False)):
                eager_step(optimizer, self.eager, verdict)
        for bucket in self._buckets:
            bucket.step(self._norm.reductions, scaling, reduced)
            bucket.mark_written(who)
        if reduced:
            self._report(optimizer, verdict)

    def _reduce(self, optimizer: FusedStep) -> Tensor | None:
        """The norm pass; returns what eager gradients need to know of all."""
        for bucket, first in zip(self._buckets, self._norm.first_rows, strict=True):
            bucket.norm(self._norm.reductions, first)
        eager = [p.grad for p in self.eager if p.grad is not None]
        return self._norm.combine(eager, optimizer.norm_group)

    def _report(self, optimizer: FusedStep, verdict: Verdict | None) -> None:
        """Leaves norm and inf check where the user and our GradScaler look for them."""
        found: list[Any] = [(d, r.norm, r.nonfinite) for d, r in self._norm.reductions.items()]
        if verdict is not None and verdict.norm is not None:
            found.append((verdict.norm.device, verdict.norm, verdict.nonfinite))
        optimizer._grad_norm = found[0][1]
        for device, _, nonfinite in found:  # all say the same
            optimizer._nonfinite_per_device[device] = nonfinite

    def refresh_hyperparameters(self, optimizer: FusedStep) -> None:
        """Uploads the hyperparameters that changed."""
        if not self._buckets:
            return
        rows = [_row(optimizer, group) for group in optimizer.param_groups]
        for bucket in self._buckets:
            bucket.tables.set_hyperparameters(rows)


class _PlannedBucket:
    """A bucket with its tables, and where its gradients stand in the list of all."""

    def __init__(
        self,
        optimizer: FusedStep,
        rule: str,
        names: tuple[str, ...],
        dtypes: tuple[tuple[str, torch.dtype], ...],
        entries: list[_Entry],
        zeroed_twice: set[int],
    ) -> None:
        states = [optimizer.state[e.whole] for e in entries]
        wanted = {name for e in entries for name in extras(optimizer.param_groups[e.group])}
        self.whole = [e.whole for e in entries]
        self.params = [e.param for e in entries]
        self.positions = [e.position for e in entries]
        # Gradients that do not lie like their parameter are copied, at every step; likewise those
        # that would be zeroed under the eyes of another parameter.
        self.copies = {
            i: self._buffer(e.param, e.grad)
            for i, e in enumerate(entries)
            if not _lie_alike(e.grad, e.param) or e.grad.is_neg() or e.position in zeroed_twice
        }
        self._own = itemgetter(*self.positions, -1)  # -1: a tuple also of one
        # Bytes that a gradient reads at least; one that is copied may hold an element many times.
        sizes = [e.grad.numel() for e in entries]
        self._needed = [
            min(size, 1) if i in self.copies else size * e.grad.element_size()
            for i, (size, e) in enumerate(zip(sizes, entries, strict=True))
        ]
        self._empty = [size == 0 for size in sizes]
        slots = {"param": self.params, "grad": [e.grad for e in entries]}
        for name in ("step", *names):
            slots[name] = [local(s[name]) for s in states]
        for name in (SLOW_WEIGHTS, EMA_WEIGHTS):
            if name in wanted:  # whose group has none needs an address there, and no memory
                held = [s.get(name, p) for s, p in zip(states, self.params, strict=True)]
                slots[name] = list(map(local, held))
        held_by = [("step", *names, *extras(optimizer.param_groups[e.group])) for e in entries]
        self.kept = Kept(states, held_by)
        bucket = Bucket(
            rule=rule,
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

    def check_counters(self, optimizer: FusedStep) -> None:
        bad = self.backend.bad_counter(self.tables)
        if bad is not None:
            param = self.whole[bad]
            raise bad_counter(f"is {float(optimizer.state[param]['step']):g}", param.shape)

    def point_at(self, grads: list[Tensor]) -> None:
        own = self._own(grads)[:-1]
        held = map(torch.UntypedStorage.nbytes, map(Tensor.untyped_storage, own))
        addresses = list(map(Tensor.data_ptr, own))
        if not all(map(ge, held, self._needed)) or not all(map(or_, addresses, self._empty)):
            self._look_closer(own)
        for i, copy in self.copies.items():
            addresses[i] = copy.copy_(grads[self.positions[i]]).data_ptr()
        self.tables.set_gradients(addresses)

    def _look_closer(self, grads: Sequence[Tensor]) -> None:
        """Memory that was taken away is refused, zeros that torch has not made yet are made."""
        for i, grad in enumerate(grads):
            check_gradient_memory(grad)
            if grad._is_zerotensor():
                self.copies.setdefault(i, self._buffer(self.params[i], grad))

    @staticmethod
    def _buffer(param: Tensor, grad: Tensor) -> Tensor:
        return torch.empty_like(param, dtype=grad.dtype, memory_format=torch.preserve_format)

    def norm(self, reductions: dict[torch.device, Reduction], first: int) -> None:
        self.backend.norm(self.tables, reductions[self.tables.device], first)

    def step(
        self, reductions: dict[torch.device, Reduction], scaling: Scaling, reduced: bool
    ) -> None:
        device = self.tables.device
        gradients = Gradients(reduced, *scaling.on(device))
        self.backend.advance(self.tables, reductions[device], gradients)
        self.backend.update(self.tables)

    def mark_written(self, who: Participants) -> None:
        """Tells autograd what the kernels wrote to; zeroes gradients they had copies of."""
        torch.autograd.graph.increment_version(self.whole)
        if self.tables.zero_grads:
            torch.autograd.graph.increment_version(self._own(who.grads)[:-1])
            zero_grads([self.whole[i] for i in self.copies])


def _kept_eagerly(optimizer: FusedStep, params: list[Tensor]) -> Kept:
    """The states of parameters that torch steps: one of them may come to share memory."""
    states = [optimizer.state[p] for p in params if optimizer.state.get(p)]
    names = [
        tuple(k for k, v in state.items() if isinstance(v, Tensor) and _is_plain(local(v)))
        for state in states
    ]
    return Kept(states, names)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in PLAIN and tensor.layout is torch.strided


def _sharing(optimizer: FusedStep, who: Participants) -> set[int]:
    """Which parameters, by position, share memory with another, or their states do."""
    written: list[Tensor] = []
    owners: list[int] = []
    for position, (param, part) in enumerate(zip(who.params, who.local_params, strict=True)):
        state = optimizer.state.get(param, {})
        held = map(local, filter(torch.is_tensor, state.values()))
        mine = [t for t in (part, *held) if _is_plain(t) and has_memory(t)]
        written += mine
        owners += [position] * len(mine)
    return {owners[i] for i in overlapping(written)}


def _split_alike(held: Tensor, param: Tensor) -> bool:
    """Whether a state's part on this rank is that of the parameter; a plain one is relaid."""
    if not alike(held, param):
        return False
    return not is_dtensor(param) or local(held).stride() == local(param).stride()


def _lie_alike(a: Tensor, b: Tensor) -> bool:
    return a.stride() == b.stride() or (a.is_contiguous() and b.is_contiguous())


def _dtypes(
    state: dict[str, Any], param: Tensor, grad: Tensor, names: tuple[str, ...]
) -> tuple[tuple[str, torch.dtype], ...]:
    """The dtype of each slot; of one that the parameter does not have, what it would be."""
    held = {"param": param.dtype, "grad": grad.dtype, "step": state["step"].dtype}
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
