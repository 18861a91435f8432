"""Which kernel serves which parameter: sorted once, and again whenever anything changed."""

from __future__ import annotations

from enum import Enum, auto
from itertools import chain, compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.kernels.host import mark_written
from spectramind_fused.multi_tensor import has_memory, is_plain, overlapping, place_all, runtime
from spectramind_fused.stepping.absent import Like, absent, likes_of, with_stand_ins
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.backends import Backends
from spectramind_fused.stepping.bucket import BucketDescription, BucketKey, Entry, PlannedBucket
from spectramind_fused.stepping.captures import Captures
from spectramind_fused.stepping.decision import Decision, decide
from spectramind_fused.stepping.eager import eager_step
from spectramind_fused.stepping.factored import FactoredBucket, MeasuredBucket
from spectramind_fused.stepping.fingerprint import Fingerprint, Kept, Look
from spectramind_fused.stepping.inputs import Members, Participants, StepInputs, StepResult
from spectramind_fused.stepping.matrices import MatrixBucket
from spectramind_fused.stepping.norm import NormPass
from spectramind_fused.stepping.refusals import (
    check_fused,
    check_gradient_memory,
    check_members,
    check_state,
)
from spectramind_fused.stepping.rows import Rows
from spectramind_fused.stepping.shards import is_dtensor, local, place_of, same_sharding
from spectramind_fused.stepping.state import (
    extras,
    keeps_counter,
    needs_wide_counters,
    place_counter,
    prepare,
)
from spectramind_fused.stepping.storage import PARAM, begun, entries_of, holds_many, storages_of


class PlanDescription(NamedTuple):
    """How parameters are stepped.

    Attributes:
        buckets: of those that kernels serve, one for each set of launches.
        eager: the parameters that torch's own step serves.

    Also those that have no gradient now and had one before.
    """

    buckets: list[BucketDescription]
    eager: list[Tensor]


class _Server(Enum):
    """Who steps a parameter."""

    KERNELS = auto()
    TORCH = auto()
    TORCH_ONCE = auto()  # it begins a state that kernels then take over


class Plan:
    """How a set of parameters is stepped, valid for as long as `look` says so.

    It covers every parameter that has had a gradient: one that has none is passed over.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        backends: Backends,
        inputs: StepInputs,
        participants: Participants,
        before: Plan | None = None,
    ) -> None:
        """Sorts the parameters, makes the states that are missing, builds the tables.

        Args:
            algorithm: what the optimizer's class is.
            backends: what serves its parameters.
            inputs: what this step brings.
            participants: take part in it.
            before: the plan that does not fit any more. The parameters that it could step are
                covered again where they have no gradient now.

        Raises:
            ValueError, RuntimeError: a state cannot be stepped with; a backend was named and
                cannot serve a parameter; a CUDA graph is being captured. Nothing has moved then.
        """
        self._algorithm = algorithm
        self._backends = backends
        present = participants.present()
        check_members(algorithm, present)
        for param in inputs.counters.keys() - set(participants.everyone):
            del inputs.counters[param]
        left = before._likes if before else {}
        standing = absent(left, algorithm, backends, inputs, participants)
        shown = self._choose(inputs, participants, standing)
        zeroed_twice = (
            overlapping(self.members(participants).local_grads) if inputs.zero_grads else set()
        )

        sorted_by = self._sorted(inputs, shown)
        served = [entry for entry, server in sorted_by if server is _Server.KERNELS]
        self._eager = [entry.whole for entry, server in sorted_by if server is not _Server.KERNELS]
        devices = list(dict.fromkeys(entry.param.device for entry in served))
        self._gpus = [device for device in devices if runtime.current.serves(device)]
        if any(map(runtime.current.capturing, self._gpus)):
            raise RuntimeError(
                "A CUDA graph is being captured, and this step is not like the last one (who has a "
                "gradient, an option, or where a parameter or a state lies): take one such step "
                "outside the graph, then capture."
            )
        self._begun: list[Tensor] = []  # had no state before this plan, and have taken no step yet
        self._norm = NormPass(participants.everyone, devices, present.grads)
        self._buckets = self._bucketed(self._with_rows(served), inputs, zeroed_twice)
        self._behind = True  # the kernels have not been given the addresses that were found last
        self._streams = {
            gpu: {runtime.current.stream(gpu): self._copies(gpu)} for gpu in self._gpus
        }
        self._groups = len(inputs.groups)

        self._likes: dict[Tensor, Like] = likes_of(shown)
        lasts = all(map(is_plain, shown.local_grads)) and all(
            server is not _Server.TORCH_ONCE for _, server in sorted_by
        )
        self._built_on = (
            Fingerprint.of(
                algorithm,
                inputs,
                participants,
                self._selectors,
                shown,
                zeroed_twice,
                self._kept(inputs, shown.params),
            )
            if lasts
            else None
        )

    def _choose(
        self, inputs: StepInputs, participants: Participants, standing: dict[Tensor, Tensor]
    ) -> Members:
        """Sets whom the plan covers: who takes part, and of the others whoever has a stand-in.

        One who shares memory with another is not covered: the other would have to be stepped apart.
        """
        everyone, has_grad = participants.everyone, participants.has_grad
        chosen = [has or p in standing for p, has in zip(everyone, has_grad, strict=True)]
        shared = _sharing(inputs, participants.chosen(chosen)) if standing else set()
        covered = list(compress(everyone, chosen))
        alone = {p: standing[p] for i, p in enumerate(covered) if p in standing and i not in shared}
        self._selectors = [has or p in alone for p, has in zip(everyone, has_grad, strict=True)]
        return with_stand_ins(self.members(participants), alone)

    def _sorted(self, inputs: StepInputs, members: Members) -> list[tuple[Entry, _Server]]:
        """Who steps each parameter; refuses states that nobody can step with."""
        group_of = {p: i for i, group in enumerate(inputs.groups) for p in group["params"]}
        number_of = {p: i for i, p in enumerate(chain(*(g["params"] for g in inputs.groups)))}
        found = []
        for position, (whole, whole_grad, param, grad) in enumerate(zip(*members, strict=True)):
            group, state = group_of[whole], inputs.state.get(whole, {})
            place = place_of(whole, number_of[whole])
            entry = Entry(position, 0, group, state, whole, whole_grad, param, grad, place)
            check_fused(inputs.groups[group], whole)
            algorithm = self._algorithm.of(whole, inputs.groups[group])
            check_state(algorithm, state, whole, inputs.groups[group])
            found.append((entry, self._server(entry, inputs)))
        # What is written by two threads at once is not for a kernel, of torch's neither.
        shared = _sharing(inputs, members)
        self._shared = {entry.whole for entry, _ in found if entry.position in shared}
        return [
            (entry, _Server.TORCH if entry.position in shared else server)
            for entry, server in found
        ]

    def _with_rows(self, entries: list[Entry]) -> list[Entry]:
        """The entries, with the rows of their partial sums."""
        rows = list(compress(self._norm.first_rows, self._selectors))
        return [entry._replace(partial_row=rows[entry.position]) for entry in entries]

    def _server(self, entry: Entry, inputs: StepInputs) -> _Server:
        group, state = inputs.groups[entry.group], entry.state
        if not is_plain(entry.grad) or self._backends.why_eager(group, entry.whole):
            return _Server.TORCH
        if not same_sharding(entry.whole_grad, entry.whole):
            return _Server.TORCH
        algorithm = self._algorithm.of(entry.whole, group)
        names = (*algorithm.states_of(group), *algorithm.vectors)
        missing = not all(begun(state, name) for name in names)
        if "step" in state and missing and keeps_counter(algorithm, group):
            return _Server.TORCH_ONCE
        slots = (PARAM, *names, *extras(group))
        held = [(key, state[key]) for name in slots for key in entries_of(name) & state.keys()]
        if not all(
            is_plain(local(t)) and (holds_many(key) or _same_part(t, entry.whole))
            for key, t in held
            if t is not None
        ):
            return _Server.TORCH
        backend = self._backends.on(entry.whole.device).backend
        assert backend is not None  # or there is a reason for torch's step
        dtypes = [entry.grad.dtype, *(state[n].dtype for n in slots if state.get(n) is not None)]
        return _Server.TORCH if any(map(backend.unsupported, dtypes)) else _Server.KERNELS

    def _bucketed(
        self, served: list[Entry], inputs: StepInputs, zeroed_twice: set[int]
    ) -> list[PlannedBucket]:
        """The buckets of the served parameters, whose states are completed."""
        entries: dict[BucketKey, list[Entry]] = {}
        wide, algorithms = needs_wide_counters(inputs.groups), {}
        for entry in served:
            group, state, param = inputs.groups[entry.group], entry.state, entry.whole
            algorithm = self._algorithm.of(param, group)
            names = algorithm.states_of(group)
            step = place_counter(algorithm, state, param, group, inputs.counters, wide)
            prepare(algorithm, state, param, names, group, inputs.attributes["defaults"])
            if state:  # torch has no entry for a parameter without a state
                if param not in inputs.state:
                    self._begun.append(param)
                inputs.state[param] = state
            rule, numbers, vectors = algorithm.rule_of(group), algorithm.numbers, algorithm.vectors
            storages = storages_of(algorithm, group, param, state)
            key = BucketKey.of(entry, group, step.dtype, rule, names, numbers, storages, vectors)
            algorithms[key] = algorithm
            entries.setdefault(key, []).append(entry)
        buckets = []
        for key, of_one in entries.items():
            backend = self._backends.on(key.device).backend
            assert backend is not None
            algorithm = algorithms[key]
            kind = _kind_of(algorithm)
            buckets.append(kind(key, of_one, algorithm, backend, inputs, zeroed_twice))
        rows = Rows(self._algorithm, inputs.groups, inputs.max_norm)
        pairs = [pair for bucket in buckets for pair in bucket.rows(rows)]
        place_all([tables for tables, _ in pairs], [of_tables for _, of_tables in pairs])
        return buckets

    def _kept(self, inputs: StepInputs, params: list[Tensor]) -> list[Kept]:
        """What each parameter is stepped with; of those that torch steps the whole state."""
        of_kernels = dict(chain.from_iterable(bucket.kept() for bucket in self._buckets))
        return [
            of_kernels.get(i) or _kept_eagerly(inputs.state.get(param))
            for i, param in enumerate(params)
        ]

    @property
    def has_kernels(self) -> bool:
        """Whether kernels serve some of the parameters."""
        return bool(self._buckets)

    def look(self, inputs: StepInputs) -> Look | None:
        """What a step finds; None where the plan fits no more.

        It does if every gradient is of a parameter that it can step, and they lie where the plan
        was built on.
        """
        look = self._built_on.look(inputs) if self._built_on else None
        if look is None or (look.others and self._shared):
            return None
        self._behind |= look.moved
        return look._replace(moved=self._behind)

    def members(self, participants: Participants) -> Members:
        """Everyone whom the plan can step, with this step's gradients."""
        return participants.chosen(self._selectors)

    def prepare(self, inputs: StepInputs, look: Look | None, captures: Captures) -> None:
        """Everything before a step's first launch, so that whatever it refuses is refused here.

        Args:
            inputs: what this step brings.
            look: what it has found; None of the step that the plan was built for.
            captures: keep the plan if a CUDA graph is being captured.

        Raises:
            ValueError, RuntimeError: as in `FusedStep.step`. Nothing has moved then.
        """
        eager = self._stepped_eagerly()
        for grad in (param.grad for param in eager):
            assert grad is not None
            check_gradient_memory(grad)
        if not inputs.settled:
            self._set_hyperparameters(inputs.groups, inputs.max_norm)
        if self._gpus:
            captures.keep(self, self._gpus)
        self._point(inputs, look)
        self._record_streams()
        for bucket in self._buckets:
            bucket.check_counters()

    def _stepped_eagerly(self) -> list[Tensor]:
        return [param for param in self._eager if param.grad is not None]

    def run(self, inputs: StepInputs) -> StepResult:
        """One step: two launches per bucket, three where the norm of the gradients is needed.

        Args:
            inputs: what this step brings, which `prepare` has been told.

        Raises:
            RuntimeError: another rank refused its step, takes another one, or is gone. Nothing
                has moved then.
        """
        eager = self._stepped_eagerly()
        try:
            total = self._reduce(eager, inputs) if inputs.needs_norm else None
        except RuntimeError:
            for param in self._begun:
                inputs.state.pop(param, None)
            raise
        self._begun = []
        decision = None
        if eager or (total is not None and not self._buckets):
            device = eager[0].device if total is None else total.device
            decision = decide(total, inputs.scaling.on(device))
        if eager and decision is not None:
            eager_step(self._algorithm, inputs, eager, decision, self._shared)
        self._mark_written(inputs.zero_grads)
        for bucket in self._buckets:
            bucket.step(self._norm.reductions, inputs.needs_norm, inputs.scaling)
            bucket.zero_copied()
        return self._result(decision) if inputs.needs_norm else StepResult(None, {})

    def _mark_written(self, zero_grads: bool) -> None:
        """Tells autograd what the kernels are about to write to."""
        for bucket in self._buckets:
            written = bucket.written()
            mark_written(written)
            if zero_grads:
                mark_written(written, gradients=True)

    def _point(self, inputs: StepInputs, look: Look | None) -> None:
        """Hands the addresses of this step's gradients to the kernels."""
        if look is not None and look.pointed:
            for bucket in self._buckets:
                bucket.follow(look)
        else:
            grads = self.members(Participants.of(inputs.groups)).local_grads
            for bucket in self._buckets:
                bucket.point_at(grads)
        self._behind = False

    def _record_streams(self) -> None:
        """Keeps the tables from being freed while a stream that was given work may read them."""
        for gpu, seen in self._streams.items():
            stream, copies = runtime.current.stream(gpu), self._copies(gpu)
            if seen.get(stream) != copies and not runtime.current.capturing(gpu):
                seen[stream] = copies
                of_buckets = [b.on_device() for b in self._buckets if b.key.device == gpu]
                for tensor in chain(self._norm.reductions[gpu].on_device(), *of_buckets):
                    runtime.current.record(tensor)

    def _copies(self, gpu: torch.device) -> int:
        """How many gradients are copied there: a step may have made room for one more."""
        return sum(bucket.copies for bucket in self._buckets if bucket.key.device == gpu)

    def memory(self) -> list[Tensor]:
        """Parameters and states that the kernels write to, as they lie now.

        They stay there even if a user gives a parameter other memory, or a state another tensor.
        """
        kept = chain.from_iterable(bucket.kept() for bucket in self._buckets)
        states = chain.from_iterable(of_one.tensors() for _, of_one in kept)
        params = chain.from_iterable(bucket.params() for bucket in self._buckets)
        return [local(tensor).detach() for tensor in chain(params, states)]

    def _reduce(self, eager: list[Tensor], inputs: StepInputs) -> Tensor | None:
        """The norm pass; returns what eager gradients need to know of all."""
        for bucket in self._buckets:
            bucket.norm(self._norm.reductions)
        total = self._norm.combine([p.grad for p in eager], inputs)  # type: ignore[misc]
        if total is None:
            (reduction,) = self._norm.reductions.values()
            reduction.sums = self._buckets[0].sums(reduction)
        return total

    def _result(self, decision: Decision | None) -> StepResult:
        """What the gradients were; all devices say the same."""
        found: list[Any] = [(d, r.norm, r.nonfinite) for d, r in self._norm.reductions.items()]
        if decision is not None and decision.norm is not None:
            found.append((decision.norm.device, decision.norm, decision.nonfinite))
        return StepResult(found[0][1], {device: nonfinite for device, _, nonfinite in found})

    def refresh_hyperparameters(self, groups: list[Group], max_norm: float | None) -> None:
        """Uploads the hyperparameters that changed; of groups that the plan was built on."""
        if len(groups) >= self._groups:
            self._set_hyperparameters(groups[: self._groups], max_norm)
            self._record_streams()

    def _set_hyperparameters(self, groups: list[Group], max_norm: float | None) -> None:
        if self._buckets:  # a class without a rule has no rows
            rows = Rows(self._algorithm, groups, max_norm)
            for tables, own in chain.from_iterable(bucket.rows(rows) for bucket in self._buckets):
                tables.set_hyperparameters(own)

    def describe(self) -> PlanDescription:
        """The buckets, and the parameters that no kernel serves."""
        return PlanDescription([bucket.describe() for bucket in self._buckets], list(self._eager))


def _kind_of(algorithm: Algorithm) -> type[PlannedBucket]:
    if algorithm.momentum is not None:
        return MatrixBucket
    if algorithm.vectors:
        return FactoredBucket
    return MeasuredBucket if algorithm.measured else PlannedBucket


def _kept_eagerly(state: dict[str, Any] | None) -> Kept:
    """The state of a parameter that torch steps: one of its entries may come to share memory."""
    named = (state or {}).items()
    return Kept(state, tuple(k for k, v in named if torch.is_tensor(v) and is_plain(local(v))))


def _sharing(inputs: StepInputs, members: Members) -> set[int]:
    """Which parameters, by position, share memory with another, or their states do."""
    written: list[Tensor] = []
    owners: list[int] = []
    for position, (param, part) in enumerate(
        zip(members.params, members.local_params, strict=True)
    ):
        state = inputs.state.get(param, {})
        held = map(local, filter(torch.is_tensor, state.values()))
        mine = [t for t in (part, *held) if is_plain(t) and has_memory(t)]
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
