"""Which kernel serves which parameter: sorted once, and again whenever anything changed."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import PLAIN, has_memory, overlapping
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.backends import Backends
from spectramind_fused.stepping.bucket import BucketDescription, BucketKey, Entry, PlannedBucket
from spectramind_fused.stepping.decision import Decision, decide
from spectramind_fused.stepping.eager import eager_step
from spectramind_fused.stepping.fingerprint import Fingerprint, StateEntries
from spectramind_fused.stepping.inputs import Participants, StepInputs, StepResult
from spectramind_fused.stepping.norm import NormPass, Part
from spectramind_fused.stepping.options import Options
from spectramind_fused.stepping.refusals import check_fused, check_gradient_memory, check_state
from spectramind_fused.stepping.shards import Sharding, is_dtensor, local, same_sharding
from spectramind_fused.stepping.state import (
    extras,
    keeps_counter,
    needs_wide_counters,
    place_counter,
    prepare,
)


class PlanDescription(NamedTuple):
    """How parameters are stepped.

    Attributes:
        buckets: of those that kernels serve, one for each set of launches.
        eager: the parameters that torch's own step serves.
    """

    buckets: list[BucketDescription]
    eager: list[Tensor]


class _Server(Enum):
    """Who steps a parameter."""

    KERNELS = auto()
    TORCH = auto()
    TORCH_ONCE = auto()  # it begins a state that kernels then take over


class Plan:
    """How a set of parameters is stepped, valid for as long as `fits` says so."""

    def __init__(
        self,
        algorithm: Algorithm,
        backends: Backends,
        inputs: StepInputs,
        participants: Participants,
    ) -> None:
        """Sorts the parameters, makes the states that are missing, builds the tables.

        Args:
            algorithm: what the optimizer's class is.
            backends: what serves its parameters.
            inputs: what this step brings.
            participants: take part in it.

        Raises:
            ValueError, RuntimeError: a state cannot be stepped with; a backend was named and
                cannot serve a parameter. Nothing has moved then.
        """
        self._algorithm = algorithm
        self._backends = backends
        for param in inputs.counters.keys() - set(participants.everyone):
            del inputs.counters[param]
        sorted_by = self._sorted(inputs, participants)
        served = [entry for entry, server in sorted_by if server is _Server.KERNELS]
        self._eager = [entry.whole for entry, server in sorted_by if server is not _Server.KERNELS]
        self._buckets = self._bucketed(served, inputs, participants)
        sums = [
            Part(bucket.tables.device, len(bucket.tables.pieces), bucket.key.sharding)
            for bucket in self._buckets
        ]
        self._norm = NormPass(sums, list(map(Sharding.of, participants.grads)))
        kept = [*(bucket.kept for bucket in self._buckets), _kept_eagerly(inputs, self._eager)]
        lasts = all(map(_is_plain, participants.local_grads)) and all(
            server is not _Server.TORCH_ONCE for _, server in sorted_by
        )
        self._built_on = Fingerprint.of(algorithm, inputs, participants, kept) if lasts else None

    def _sorted(
        self, inputs: StepInputs, participants: Participants
    ) -> list[tuple[Entry, _Server]]:
        """Who steps each parameter; refuses states that nobody can step with."""
        group_of = {p: i for i, group in enumerate(inputs.groups) for p in group["params"]}
        rows = zip(
            participants.params,
            participants.grads,
            participants.local_params,
            participants.local_grads,
            strict=True,
        )
        found = []
        for position, (whole, whole_grad, param, grad) in enumerate(rows):
            group, state = group_of[whole], inputs.state.get(whole, {})
            entry = Entry(position, group, state, whole, whole_grad, param, grad)
            check_fused(inputs.groups[group], whole)
            names = self._algorithm.states_of(inputs.groups[group])
            check_state(self._algorithm, state, whole, names)
            found.append((entry, self._server(entry, inputs)))
        # What is written by two threads at once is not for a kernel.
        any_served = any(server is _Server.KERNELS for _, server in found)
        shared = _sharing(inputs, participants) if any_served else set()
        return [
            (entry, _Server.TORCH if entry.position in shared else server)
            for entry, server in found
        ]

    def _server(self, entry: Entry, inputs: StepInputs) -> _Server:
        group, state = inputs.groups[entry.group], entry.state
        if not _is_plain(entry.grad) or self._backends.why_eager(group, entry.whole):
            return _Server.TORCH
        if not same_sharding(entry.whole_grad, entry.whole):
            return _Server.TORCH
        names = self._algorithm.states_of(group)
        missing = any(state.get(name) is None for name in names)
        if "step" in state and missing and keeps_counter(self._algorithm, group):
            return _Server.TORCH_ONCE
        held = [state[n] for n in (*names, *extras(group)) if state.get(n) is not None]
        if not all(_is_plain(local(t)) and _same_part(t, entry.whole) for t in held):
            return _Server.TORCH
        backend = self._backends.on(entry.whole.device).backend
        assert backend is not None  # or there is a reason for torch's step
        dtypes = [entry.grad.dtype, *(tensor.dtype for tensor in held)]
        return _Server.TORCH if any(map(backend.unsupported, dtypes)) else _Server.KERNELS

    def _bucketed(
        self, served: list[Entry], inputs: StepInputs, participants: Participants
    ) -> list[PlannedBucket]:
        """The buckets of the served parameters, whose states are completed."""
        entries: dict[BucketKey, list[Entry]] = {}
        wide = needs_wide_counters(inputs.groups)
        for entry in served:
            group, state, param = inputs.groups[entry.group], entry.state, entry.whole
            names = self._algorithm.states_of(group)
            step = place_counter(self._algorithm, state, param, group, inputs.counters, wide)
            prepare(state, param, names, group)
            if state:  # torch has no entry for a parameter without a state
                inputs.state[param] = state
            key = BucketKey.of(entry, step.dtype, self._algorithm.rule_of(group), names)
            entries.setdefault(key, []).append(entry)
        zeroed_twice = overlapping(participants.local_grads) if inputs.zero_grads else set()
        buckets = []
        for key, of_one in entries.items():
            backend = self._backends.on(key.device).backend
            assert backend is not None
            buckets.append(PlannedBucket(key, of_one, backend, inputs, zeroed_twice))
        return buckets

    def fits(self, inputs: StepInputs, participants: Participants) -> bool:
        """Whether who takes part, and where it lies, is what the plan was built on."""
        return self._built_on is not None and self._built_on.fits(inputs, participants)

    def run(self, inputs: StepInputs, participants: Participants) -> StepResult:
        """One step: two launches per bucket, three where the norm of the gradients is needed.

        Raises:
            ValueError, RuntimeError: as in `FusedStep.step`. Nothing has moved then.
        """
        for param in self._eager:
            if param.grad is not None:
                check_gradient_memory(param.grad)
        self.refresh_hyperparameters(inputs.groups, inputs.max_norm)
        for bucket in self._buckets:
            bucket.check_counters()
        for bucket in self._buckets:
            bucket.point_at(participants.local_grads)

        total = self._reduce(inputs.norm_group) if inputs.needs_norm else None
        decision = None
        if self._eager or (total is not None and not self._buckets):
            device = self._eager[0].device if total is None else total.device
            decision = decide(total, inputs.scaling.on(device))
        if self._eager and decision is not None:
            eager_step(self._algorithm, inputs, self._eager, decision)
        for bucket in self._buckets:
            bucket.step(self._norm.reductions, inputs.needs_norm, inputs.scaling)
            bucket.mark_written(participants)
        return self._result(decision) if inputs.needs_norm else StepResult(None, {})

    def _reduce(self, norm_group: Any) -> Tensor | None:
        """The norm pass; returns what eager gradients need to know of all."""
        for bucket, first in zip(self._buckets, self._norm.first_rows, strict=True):
            bucket.norm(self._norm.reductions, first)
        eager = [p.grad for p in self._eager if p.grad is not None]
        return self._norm.combine(eager, norm_group)

    def _result(self, decision: Decision | None) -> StepResult:
        """What the gradients were; all devices say the same."""
        found: list[Any] = [(d, r.norm, r.nonfinite) for d, r in self._norm.reductions.items()]
        if decision is not None and decision.norm is not None:
            found.append((decision.norm.device, decision.norm, decision.nonfinite))
        return StepResult(found[0][1], {device: nonfinite for device, _, nonfinite in found})

    def refresh_hyperparameters(self, groups: list[Group], max_norm: float | None) -> None:
        """Uploads the hyperparameters that changed."""
        if not self._buckets:
            return
        rows = [self._row(group, max_norm) for group in groups]
        for bucket in self._buckets:
            bucket.tables.set_hyperparameters(rows)

    def _row(self, group: Group, max_norm: float | None) -> tuple[Any, ...]:
        """A group's row of the hyperparameter table: the common columns, then the rule's."""
        k, alpha, decay = Options.of(group)
        return (
            group["maximize"],
            float("inf") if max_norm is None else max_norm,
            k,
            alpha,
            -1 if decay is None else decay,
            *self._algorithm.row_of(group),
        )

    def describe(self) -> PlanDescription:
        """The buckets, and the parameters that no kernel serves."""
        return PlanDescription([bucket.describe() for bucket in self._buckets], list(self._eager))


def _kept_eagerly(inputs: StepInputs, params: list[Tensor]) -> StateEntries:
    """The states of parameters that torch steps: one of them may come to share memory."""
    states = [inputs.state[p] for p in params if inputs.state.get(p)]
    names = [
        tuple(k for k, v in state.items() if isinstance(v, Tensor) and _is_plain(local(v)))
        for state in states
    ]
    return StateEntries(states, names)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in PLAIN and tensor.layout is torch.strided


def _sharing(inputs: StepInputs, participants: Participants) -> set[int]:
    """Which parameters, by position, share memory with another, or their states do."""
    written: list[Tensor] = []
    owners: list[int] = []
    for position, (param, part) in enumerate(
        zip(participants.params, participants.local_params, strict=True)
    ):
        state = inputs.state.get(param, {})
        held = map(local, filter(torch.is_tensor, state.values()))
        mine = [t for t in (part, *held) if _is_plain(t) and has_memory(t)]
        written += mine
        owners += [position] * len(mine)
    return {owners[i] for i in overlapping(written)}


def _same_part(held: Tensor, param: Tensor) -> bool:
    """Whether this rank's part of a state matches the parameter's, for a DTensor also in strides.

    Strides of a plain state may differ: `prepare` gives it those of the parameter.
    """
    if not same_sharding(held, param):
        return False
    return not is_dtensor(param) or local(held).stride() == local(param).stride()
