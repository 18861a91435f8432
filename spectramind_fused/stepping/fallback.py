"""Where no kernel runs and nothing of ours is asked for: torch's own step, in its fastest form.

It is taken on the optimizer itself, so it costs what torch's costs. Torch's fused steps read the
memory of a tensor as it lies, whatever its strides: so what they are given is compared at every
step, and a step that is not plain is the eager one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, compress
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
from spectramind_fused.stepping.fingerprint import same_objects
from spectramind_fused.stepping.inputs import GRAD, Participants, StepInputs
from spectramind_fused.stepping.options import Options
from spectramind_fused.stepping.refusals import check_members, check_state
from spectramind_fused.stepping.state import LOOKAHEAD_STEP, begin_again
from spectramind_fused.stepping.storage import EMA_WEIGHTS, MASTERS, SIXTEEN_BIT, SLOW_WEIGHTS

Form = dict[str, bool]
# A getter without the detour of a Python property.
_BYTES = vars(torch._C.TensorBase)["nbytes"].__get__
_OURS = {SLOW_WEIGHTS, EMA_WEIGHTS, LOOKAHEAD_STEP, *MASTERS}
# On CPUs torch's foreach steps beat its loops below about so many elements per tensor: measured
# with RMSprop, NAdam and Adadelta, torch 2.13.
_FOREACH_BELOW = 3000
_OLD = torch.__version__ < "2.13"


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
        self._seen: _Seen | None = None
        self.served: list[Tensor] = []  # all parameters, if the last step was torch's as it is

    def serves(self, inputs: StepInputs) -> bool:
        """Whether this step is torch's as it is.

        Raises:
            ValueError, RuntimeError: as `Plan`, where parameters, states or options are new.
        """
        self.served = []
        if self._backends.asked not in ("auto", "torch") or not _nothing_of_ours(inputs):
            self._seen = None
            return False
        if any(self._backends.have_kernels(group["params"][0]) for group in _filled(inputs.groups)):
            return False
        if self._seen is None or not self._seen.still(self._algorithm, inputs):
            self._seen = None
            forms = self._decided(inputs)
            self._seen = _Seen(self._algorithm, inputs, forms)
        return self._seen.forms is not None and self._seen.are_plain_gradients()

    def _decided(self, inputs: StepInputs) -> list[Form] | None:
        """A form for each group; None where one parameter or state is not for torch as it is."""
        check_members(self._algorithm, Participants.of(inputs.groups).present())
        forms = [self._form(group) for group in inputs.groups]
        for group, form in zip(inputs.groups, forms, strict=True):
            for p in group["params"]:
                state, algorithm = inputs.state.get(p, {}), self._algorithm.of(p, group)
                check_state(algorithm, state, p, group)
                plain = (
                    _is_plain(p) and self._rounded_once(p, form) and self._begun_by_torch(state, p)
                )
                has_kernels = self._backends.have_kernels(p)
                if not plain or has_kernels or p in inputs.counters or group.get("differentiable"):
                    return None
        begin_again(self._algorithm, inputs.groups, inputs.state)
        for group, form in zip(inputs.groups, forms, strict=True):
            for p in group["params"]:
                _make_counter_torchs(inputs.state.get(p, {}), p, bool(form.get("fused")))
        return forms

    def _form(self, group: Group) -> Form:
        """The fastest that torch has, unless the user asks for one, or it writes gradients."""
        params, fused, foreach = group["params"], group.get("fused"), group.get("foreach")
        device = params[0].device.type if params else ""
        if foreach is not None or fused is False or not params or _holds_tensors(group):
            return {}
        supported = self._has_fused(device)
        if (fused and not supported) or (device == "cpu" and group.get("capturable")):
            return {}  # torch refuses it
        small = sum(p.numel() for p in params) < _FOREACH_BELOW * len(params)
        real = all(p.is_floating_point() and p.device.type == device for p in params)
        # SGD without momentum is a single foreach operation.
        algorithm = self._algorithm.of_group(group)
        held = (*algorithm.states_of(group), *algorithm.vectors)
        stateless = bool(self._algorithm.rule) and not held
        if "fused" in group and supported and real and not (stateless and small):
            return {"fused": True}
        form = {"fused": False} if "fused" in group else {}
        if "foreach" in group and not group.get("nesterov"):
            listed = device in _get_foreach_kernels_supported_devices()
            form["foreach"] = listed or (device == "cpu" and small)
        return form

    def _has_fused(self, device: str) -> bool:
        """Whether torch's fused step runs there. Adagrad's refuses GPUs before torch 2.13."""
        adagrad = self._algorithm.torch_class is torch.optim.Adagrad
        refused = device == "cuda" and _OLD and adagrad
        return device in _get_fused_kernels_supported_devices() and not refused

    def _rounded_once(self, param: Tensor, form: Form) -> bool:
        """Whether a step of 16 bits is computed in float32, as everywhere else."""
        wide = self._algorithm.rule == "adam" and form.get("fused", False)
        return param.dtype not in SIXTEEN_BIT or wide

    def _begun_by_torch(self, state: dict[str, Any], param: Tensor) -> bool:
        """Whether the entries lie like their parameter, and none is ours."""
        like = (param.dtype, param.device, param.stride(), False)
        per_element = [
            value
            for key, value in state.items()
            if isinstance(value, Tensor)
            and (
                key in self._algorithm.every_state
                or (value.dim() > 0 and value.shape == param.shape)
            )
        ]
        return state.keys().isdisjoint(_OURS) and all(
            (value.dtype, value.device, value.stride(), value.is_neg()) == like
            for value in per_element
        )

    @torch.no_grad()
    def run(self, step: Callable[[], Any], groups: list[Group]) -> None:
        """Takes torch's step; its forms stand in the groups for as long."""
        assert self._seen is not None
        assert self._seen.forms is not None
        with _standing_in(self._seen.forms, groups):
            step()
        self.served = self._seen.everyone


class _Seen:
    """What the forms were decided on. Compared at every step, so it all runs at the speed of C."""

    def __init__(self, algorithm: Algorithm, inputs: StepInputs, forms: list[Form] | None) -> None:
        self.forms = forms
        # Torch's other steps look for themselves, and follow or refuse what lies otherwise.
        self._closely = forms is None or any(form.get("fused") for form in forms)
        self.everyone = [p for group in inputs.groups for p in group["params"]]
        self._groups = [_asked(algorithm, group) for group in inputs.groups]
        self._counted = bool(inputs.counters)
        self._sizes = list(map(_BYTES, self.everyone))
        self._strides = list(map(Tensor.stride, self.everyone))
        self._holders, self._states = list(inputs.state), list(inputs.state.values())
        self._of_params = [state for state in self._states if isinstance(state, dict)]
        self._entries = self._all_entries()

    def still(self, algorithm: Algorithm, inputs: StepInputs) -> bool:
        """Whether parameters and what is asked for are the same."""
        everyone = list(chain.from_iterable(group["params"] for group in inputs.groups))
        return (
            same_objects(everyone, self.everyone)
            and [_asked(algorithm, group) for group in inputs.groups] == self._groups
            and bool(inputs.counters) == self._counted
            and (not self._closely or self._lies_still(inputs))
        )

    def _lies_still(self, inputs: StepInputs) -> bool:
        """Whether the parameters lie as they did, and the entries of their states are the same."""
        return (
            list(map(_BYTES, self.everyone)) == self._sizes
            and list(map(Tensor.stride, self.everyone)) == self._strides
            and same_objects(inputs.state, self._holders)
            and same_objects(inputs.state.values(), self._states)
            and same_objects(self._all_entries(), self._entries)
        )

    def _all_entries(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._of_params)))

    def are_plain_gradients(self) -> bool:
        """Whether all gradients lie like their parameters, in as many bytes."""
        if not self._closely:
            return True
        grads: list[Any] = list(map(GRAD, self.everyone))
        sizes, strides = self._sizes, self._strides
        there = [grad is not None for grad in grads]
        if not all(there):
            grads = list(compress(grads, there))
            sizes, strides = list(compress(sizes, there)), list(compress(strides, there))
        try:
            return (
                list(map(_BYTES, grads)) == sizes
                and list(map(Tensor.stride, grads)) == strides
                and not any(map(Tensor.is_neg, grads))
            )
        except (RuntimeError, NotImplementedError):  # a sparse one has no strides
            return False


def _asked(algorithm: Algorithm, group: Group) -> tuple[Any, ...]:
    """What decides about a group, beside its parameters; `Module.to` moves all of them."""
    first = group["params"][0] if group["params"] else None
    where = None if first is None else (first.device, first.dtype)
    options = [group.get(name) for name in ("fused", "foreach", "differentiable", "capturable")]
    names = algorithm.of_group(group).states_of(group) if algorithm.rule else ()
    return len(group["params"]), where, options, names, _holds_tensors(group)


def _nothing_of_ours(inputs: StepInputs) -> bool:
    off = inputs.max_norm is None and not inputs.zero_grads and inputs.scaling == Scaling()
    return off and all(Options.of(group) == Options() for group in inputs.groups)


def _filled(groups: list[Group]) -> Iterator[Group]:
    return (group for group in groups if group["params"])


def _holds_tensors(group: Group) -> bool:
    """Whether a hyperparameter is a tensor, which not every form of torch's takes."""
    return any(isinstance(value, Tensor) for value in (*group.values(), *group.get("betas", ())))


def _is_plain(param: Tensor) -> bool:
    """A dense tensor whose gradients torch keeps in its dtype."""
    plain = type(param) in PLAIN and is_dense(param) and not param.is_neg()
    return plain and param.is_leaf and param.grad_dtype == param.dtype


def _make_counter_torchs(state: dict[str, Any], param: Tensor, fused: bool) -> None:
    """A number of steps becomes a tensor, as torch asks; of its fused step, on the device."""
    step = state.get("step")
    if isinstance(step, (int, float)) or (fused and isinstance(step, Tensor)):
        device = param.device if fused else None
        state["step"] = torch.as_tensor(step, dtype=torch.float32, device=device)


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
