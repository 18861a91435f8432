"""Where no kernel runs and nothing of ours is asked for: torch's own step, in its fastest form.

It is taken on the optimizer itself, so it costs what torch's costs. Its errors are torch's, but for
the first step's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.utils._foreach_utils import (
    _get_foreach_kernels_supported_devices,
    _get_fused_kernels_supported_devices,
)

from spectramind_fused.multi_tensor import PLAIN, Scaling, is_dense
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.backends import Backends
from spectramind_fused.stepping.inputs import Participants, StepInputs
from spectramind_fused.stepping.options import Options
from spectramind_fused.stepping.refusals import check_participants, check_state
from spectramind_fused.stepping.state import EMA_WEIGHTS, LOOKAHEAD_STEP, SIXTEEN_BIT, SLOW_WEIGHTS

Form = dict[str, bool]
_ASKING = ("fused", "foreach", "differentiable", "capturable")
_OURS = {SLOW_WEIGHTS, EMA_WEIGHTS, LOOKAHEAD_STEP}
# On CPUs torch's foreach steps beat its loops below about so many elements per tensor: measured
# with RMSprop, NAdam and Adadelta, torch 2.13.
_FOREACH_BELOW = 3000


class Fallback:
    """Whether torch's own step serves all parameters as it is, and in which form."""

    def __init__(self, algorithm: Algorithm, backends: Backends) -> None:
        """Decides nothing yet.

        Args:
            algorithm: what the optimizer's class is.
            backends: what serves its parameters.
        """
        self._algorithm = algorithm
        self._backends = backends
        self._everyone: list[Tensor] = []
        self._decided_on: list[Any] = []
        self._forms: list[Form] | None = None
        self._ran = False

    @property
    def served(self) -> list[Tensor]:
        """All parameters, if the last step was torch's as it is."""
        return self._everyone if self._ran else []

    def serves(self, inputs: StepInputs) -> bool:
        """Whether this step is torch's as it is.

        Raises:
            ValueError, RuntimeError: as `Plan`, where it is looked at anew.
        """
        if self._backends.asked not in ("auto", "torch") or not _nothing_of_ours(inputs):
            return False
        everyone = list(chain.from_iterable(group["params"] for group in inputs.groups))
        facts = [self._facts(group) for group in inputs.groups]
        same = len(everyone) == len(self._everyone) and all(map(is_, everyone, self._everyone))
        if not same or facts != self._decided_on:
            self._everyone, self._decided_on = everyone, facts
            self._forms = self._decided(inputs)
        return self._forms is not None

    def forget(self) -> None:
        """Looks anew at the next step, for another one was taken."""
        self._everyone, self._ran = [], False

    def _facts(self, group: Group) -> tuple[Any, ...]:
        """What decides about a group, beside its parameters; `Module.to` moves all of them."""
        first = group["params"][0] if group["params"] else None
        where = None if first is None else (first.device, first.dtype)
        asked = [group.get(name) for name in _ASKING]
        names = self._algorithm.states_of(group) if self._algorithm.rule else ()
        return where, asked, names, _holds_tensors(group)

    def _decided(self, inputs: StepInputs) -> list[Form] | None:
        """A form for each group; None where one parameter or state is not for torch as it is."""
        forms = [self._form(group) for group in inputs.groups]
        for group, form in zip(inputs.groups, forms, strict=True):
            if group.get("differentiable"):
                return None  # the shadow lets autograd follow
            for p in group["params"]:
                plain = type(p) in PLAIN and is_dense(p) and not p.is_neg()
                # Torch then sees to it that no gradient has another dtype.
                plain = plain and p.grad_dtype == p.dtype
                if not plain or not self._rounded_once(p, form):
                    return None
                if self._backends.has_kernels(p):
                    return None
        participants = Participants.of(inputs.groups)
        check_participants(self._algorithm, participants)
        for group, form in zip(inputs.groups, forms, strict=True):
            names = self._algorithm.states_of(group) if self._algorithm.rule else ()
            for p in group["params"]:
                state = inputs.state.get(p, {})
                check_state(self._algorithm, state, p, names)
                if p in inputs.counters or not _as_torchs(state, p, bool(form.get("fused"))):
                    return None
        return forms

    def _form(self, group: Group) -> Form:
        """The fastest that torch has, unless the user asks for one."""
        params = group["params"]
        if group.get("foreach") is not None or not params or _holds_tensors(group):
            return {}
        device = params[0].device.type
        if device == "cpu" and group.get("capturable"):
            return {}  # torch refuses it
        real = all(p.is_floating_point() and p.device.type == device for p in params)
        fusable = "fused" in group and device in _get_fused_kernels_supported_devices()
        small = sum(p.numel() for p in params) < _FOREACH_BELOW * len(params)
        # SGD without momentum is a single foreach operation.
        stateless = bool(self._algorithm.rule) and not self._algorithm.states_of(group)
        if fusable and real and group["fused"] is not False and not (stateless and small):
            return {"fused": True}
        if "foreach" not in group:
            return {}
        listed = device in _get_foreach_kernels_supported_devices()
        return {"foreach": listed or (device == "cpu" and small)}

    def _rounded_once(self, param: Tensor, form: Form) -> bool:
        """Whether a step of 16 bits is computed in float32, as everywhere else."""
        wide = self._algorithm.rule == "adam" and "fused" in form
        return param.dtype not in SIXTEEN_BIT or wide

    @torch.no_grad()
    def run(self, step: Callable[[], Any], groups: list[Group]) -> None:
        """Takes torch's step; its forms stand in the groups for as long."""
        assert self._forms is not None
        try:
            with _standing_in(self._forms, groups):
                step()
        except RuntimeError:
            sparse = any(p.grad is not None and p.grad.is_sparse for p in self._everyone)
            if not sparse or {"fused": True} not in self._forms:
                raise
            self._forms = [{} for _ in groups]  # the fused steps take none, and moved nothing
            step()
        self._ran = True


def _nothing_of_ours(inputs: StepInputs) -> bool:
    off = inputs.max_norm is None and not inputs.zero_grads and inputs.scaling == Scaling()
    return off and all(Options.of(group) == Options() for group in inputs.groups)


def _holds_tensors(group: Group) -> bool:
    """Whether a hyperparameter is a tensor, which not every form of torch's takes."""
    values = [*group.values(), *group.get("betas", ())]
    return any(isinstance(value, (Tensor)) for value in values)


def _as_torchs(state: dict[str, Any], param: Tensor, fused: bool) -> bool:
    """Whether torch's step takes a state as it is; numbers of steps become tensors, as it asks."""
    if not state.keys().isdisjoint(_OURS):
        return False
    step = state.get("step")
    if isinstance(step, (int, float)) or (fused and isinstance(step, Tensor)):
        device = param.device if fused else None
        state["step"] = torch.as_tensor(step, dtype=torch.float32, device=device)
    held = [value for key, value in state.items() if key != "step" and isinstance(value, Tensor)]
    return all(
        value.dtype == param.dtype and value.device == param.device and not value.is_neg()
        for value in held
        if value.shape == param.shape
    )


@contextmanager
def _standing_in(forms: list[Form], groups: list[Group]) -> Iterator[None]:
    """Which implementation runs, in the groups for as long as torch's step looks there."""
    before = [{key: group[key] for key in form} for form, group in zip(forms, groups, strict=True)]
    for form, group in zip(forms, groups, strict=True):
        group.update(form)
    try:
        yield
    finally:
        for kept, group in zip(before, groups, strict=True):
            group.update(kept)
