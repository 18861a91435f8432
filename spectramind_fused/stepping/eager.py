"""The eager backend: torch's own step, and the rest in plain torch. Fallback and oracle."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import FIRST_STATE, MOST_STEPS
from spectramind_fused.multi_tensor import PARAM as PARAM_SLOT
from spectramind_fused.multi_tensor.storages import (
    AVERAGE_STREAM,
    SLOW_STREAM,
    AnyStorage,
    Storage,
    beside_of,
    computed_as,
    dtype_of,
    is_random,
)
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.decision import Decision
from spectramind_fused.stepping.inputs import StepInputs
from spectramind_fused.stepping.options import Options
from spectramind_fused.stepping.rounding import Draw
from spectramind_fused.stepping.shards import local, place_of
from spectramind_fused.stepping.state import (
    begin_again,
    counter_dtype,
    drop_unused,
    is_zero,
    keeps_counter,
    needs_wide_counters,
    new_step,
)
from spectramind_fused.stepping.storage import (
    CODES,
    EMA_WEIGHTS,
    MASTERS,
    PARAM,
    SCALES,
    SIXTEEN_BIT,
    SLOW_WEIGHTS,
    State,
    convert,
    entries_of,
    held_storage,
    put,
    read,
    storages_of,
    write,
)
from spectramind_fused.stepping.tail import average, begun_weights, lookahead, zero_grads
from spectramind_fused.stepping.vectors import dtype_of_vectors


def eager_step(
    algorithm: Algorithm,
    inputs: StepInputs,
    params: list[Tensor],
    decision: Decision,
    sharing: set[Tensor],
) -> None:
    """Steps `params` by torch's own code, then does what follows a step, in plain torch.

    16-bit parameters are widened, stepped in float32 and rounded once, like a kernel (and
    like torch's fused=True) does it; torch's foreach and for-loop steps round after every
    operation. Whether to skip is read on the host, as in torch's unfused step.

    Args:
        algorithm: what the optimizer's class is.
        inputs: what this step brings.
        params: whom torch steps.
        decision: whether to step, and what the gradients are multiplied by.
        sharing: those that share memory. Torch's foreach steps, its usual ones on GPUs, write to
            all parameters at once: so these are stepped one after the other.
    """
    with torch.set_grad_enabled(inputs.attributes["defaults"].get("differentiable", False)):
        if decision.skip is None or not decision.skip:
            factor = decision.factor(inputs.max_norm)
            for together in _in_turn(inputs.groups, params, sharing):
                shadow = _Shadow(algorithm, inputs, together, factor)
                shadow.step()
                shadow.write_back()
        if inputs.zero_grads:
            zero_grads(params)


def _in_turn(
    groups: list[Group], params: list[Tensor], sharing: set[Tensor]
) -> Iterator[list[Tensor]]:
    """Who is stepped at once: all that share nothing, then the others, each by itself.

    One that a group lists twice is stepped twice.
    """
    if not sharing:
        yield params
        return
    if alone := [p for p in params if p not in sharing]:
        yield alone
    for p in dict.fromkeys(p for p in params if p in sharing):
        for _ in range(max(sum(q is p for q in group["params"]) for group in groups)):
            yield [p]


_NOT_SHARED = ("param_groups", "state", "grad_scale", "found_inf")


class _Shadow:
    """Another optimizer of the same class, which holds only what is to be stepped.

    It holds stand-ins for parameters that the torch class must see otherwise: 16-bit ones, and
    ones with a gradient or a state of another dtype, in float32 (beside a float64 parameter in
    float64); those that are negated only when read, which torch's foreach steps do not write to;
    and all whose gradient is multiplied by a factor: nobody writes into `.grad`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        inputs: StepInputs,
        params: list[Tensor],
        factor: Tensor | None,
    ) -> None:
        self._algorithm = algorithm
        self._states_of_user, self._counters_apart = inputs.state, inputs.counters
        self._inputs = inputs
        group_of = {p: group for group in inputs.groups for p in group["params"]}
        self._group_of = {p: group_of[p] for p in params}
        self._storages = {
            p: storages_of(self._algorithm_of(p), group_of[p], p, inputs.state.get(p, {}))
            for p in params
        }
        for p in params:
            self._convert(p)
        widened = {p: self._widened(p) for p in params}
        self._shown = {p: self._stand_in(p, factor, widened[p] is not None) for p in params}
        self._states: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for p, q in self._shown.items():
            if p in inputs.state:
                held, wide = inputs.state[p], widened[p]
                self._states[q] = wide if wide is not None else held if q is p else dict(held)
        self._groups = [
            {**group, **({"fused": None} if "fused" in group else {}), **of_dtype}
            for group in inputs.groups
            for of_dtype in self._by_precision(group)
        ]
        # What a scaler left is in the factor, and torch's unfused steps refuse it.
        self._attributes = inputs.attributes
        kept = {k: v for k, v in inputs.attributes.items() if k not in _NOT_SHARED}
        self._optimizer = object.__new__(algorithm.cls)
        vars(self._optimizer).update(kept, param_groups=self._groups, state=self._states)

    def _stand_in(self, param: Tensor, factor: Tensor | None, widened: bool) -> Tensor:
        """A float32 copy of a 16-bit parameter, or the same memory beside another gradient."""
        grad = param.grad
        assert grad is not None
        dtype = _compute_dtype(param)
        mixed = grad.layout is torch.strided and grad.dtype != dtype
        if param.dtype == dtype and factor is None and not (mixed or widened or param.is_neg()):
            return param
        state = self._states_of_user.get(param, {})
        if beside_of(self._storages[param][PARAM]) and state.keys() & MASTERS:
            shown = read(PARAM, state, param).to(param.device)
        else:
            shown = param.detach().to(dtype).resolve_neg()
        grad = grad.to(dtype)
        scale = None if factor is None else factor.to(grad.device, grad.dtype.to_real())
        shown.grad = grad if scale is None else grad * scale
        return shown

    def _by_precision(self, group: Group) -> Iterator[Group]:
        """The stand-ins of a group's parameters; apart where torch takes an eps from their dtype.

        It is the precision of what the user has, beside a master that of the master.
        """
        params = [p for p in dict.fromkeys(group["params"]) if p in self._shown]
        eps = group.get("eps")
        if not isinstance(eps, (tuple, list)) or None not in eps:
            yield {"params": [self._shown[p] for p in params]}
            return
        dtypes = {p: torch.finfo(computed_as(self._storages[p][PARAM])) for p in params}
        for precision in dict.fromkeys(info.eps for info in dtypes.values()):
            of_dtype = [self._shown[p] for p in params if dtypes[p].eps == precision]
            own = tuple(precision if value is None else value for value in eps)
            yield {"params": of_dtype, "eps": own}

    def _algorithm_of(self, param: Tensor) -> Algorithm:
        return self._algorithm.of(param, self._group_of[param])

    def _convert(self, param: Tensor) -> None:
        """Brings what is held into another storage before the step, as it is for the kernels."""
        state = self._states_of_user.get(param, {})
        for name, storage in self._storages[param].items():
            held = held_storage(name, state, param)
            others = isinstance(held, Storage) or isinstance(storage, Storage)
            if held is not None and held != storage and others:
                convert(name, storage, state, param)

    def _widened(self, param: Tensor) -> State | None:
        """The state, in the dtype that the step is computed in; None if it is so as it is."""
        algorithm, state = self._algorithm_of(param), self._states_of_user.get(param, {})
        dtype = _compute_dtype(param)
        slots = {*algorithm.states, *algorithm.vectors, SLOW_WEIGHTS, EMA_WEIGHTS}

        def differs(key: str, value: Any) -> bool:
            if key == "step" or not isinstance(value, Tensor) or not value.is_floating_point():
                return False
            if key in slots and (value.dtype != dtype or value.is_neg()):
                return True
            return value.dtype in SIXTEEN_BIT and dtype not in SIXTEEN_BIT

        storages = self._storages[param].items()
        low = any(isinstance(storage, Storage) or storage != param.dtype for _, storage in storages)
        coded = {name for name in slots if name + CODES in state}
        besides = MASTERS.union(*({name + CODES, name + SCALES} for name in coded))
        if not (low or coded or any(differs(key, value) for key, value in state.items())):
            return None
        wide = {
            k: v.to(dtype).resolve_neg() if differs(k, v) else v
            for k, v in state.items()
            if k not in besides
        }
        return {**wide, **{name: read(name, state, param) for name in coded}}

    def step(self) -> None:
        for group in self._groups:
            for p in group["params"]:
                drop_unused(self._states.get(p, {}), group)
        slow, averages = (
            begun_weights(self._groups, self._states, name, self._dtypes(name))
            for name in (SLOW_WEIGHTS, EMA_WEIGHTS)
        )
        counters = self._counters()
        self._make_fresh()
        begin_again(self._algorithm, self._groups, self._states)
        inspect.unwrap(self._algorithm.torch_class.step)(self._optimizer)  # the user's hooks ran
        left = {k: v for k, v in vars(self._optimizer).items() if k not in _NOT_SHARED}
        self._attributes.update(left)
        for p, counter in counters.items():
            counter += 1
            self._states[p]["step"] = counter
        for group in self._groups:
            options = Options.of(group)
            if options.lookahead_k:
                # Nobody promises that a torch class without a rule counts.
                lookahead(group, self._states, slow, has_step=bool(self._algorithm.rule))
            if options.ema_decay is not None:
                average(group, self._states, averages)

    def _dtypes(self, name: str) -> dict[Tensor, torch.dtype]:
        """What a slot of each stand-in is to be kept in."""
        return {q: dtype_of(self._storages[p][name]) for p, q in self._shown.items()}

    def _make_fresh(self) -> None:
        """Empties states that hold only our weights: torch initialises a state only if it is empty.

        Step counters become tensors (in old checkpoints they are numbers), float64 where Lookahead
        must count past 2**24.
        """
        wide = needs_wide_counters(self._groups)
        for state in self._states.values():
            step = state.get("step")
            if self._algorithm.rule and step is not None:
                if not isinstance(step, Tensor):
                    step = torch.tensor(float(step), dtype=torch.float64, device="cpu")
                step = state["step"] = step.to(counter_dtype(step, wide))
            if not state.keys() - {SLOW_WEIGHTS, EMA_WEIGHTS}:
                state.clear()

    def _counters(self) -> dict[Tensor, Tensor]:
        """The step counters that are ours to move, for the torch class does not count.

        A count of 0 beside a momentum buffer says that a kernel made it, and skipped its step.
        """
        counters: dict[Tensor, Tensor] = {}
        if not self._algorithm.rule:
            return counters
        user_of = {q: p for p, q in self._shown.items()}
        for group in self._groups:
            for q in group["params"]:
                algorithm = self._algorithm.of(q, group)
                if algorithm.torch_counts_steps:
                    continue
                known, state = self._counters_apart.pop(user_of[q], None), self._states[q]
                if is_zero(state.get("step", known)):
                    state.pop("momentum_buffer", None)
                if not keeps_counter(algorithm, group):
                    state.pop("step", None)
                else:
                    held = state.get("step")
                    counter = new_step(state, group, q.device) if held is None else held
                    dtype = counter_dtype(counter, wide=True)
                    counters[q] = state["step"] = torch.as_tensor(counter, dtype=dtype)
        return counters

    def write_back(self) -> None:
        """Gives the user's parameters and states what their stand-ins have become."""
        for p, q in self._shown.items():
            of_param = self._storages[p][PARAM]
            if not self._states[q] and p not in self._states_of_user and of_param == p.dtype:
                pass  # torch has no entry for it
            elif q is p:
                self._states_of_user[p] = self._states[p]
            else:
                self._narrow(self._states[q], p)
            if isinstance(of_param, Storage):
                random = self._random(PARAM, of_param, p)
                write(PARAM, of_param, self._states_of_user[p], p, q, random)
            elif q is not p and (q.dtype != p.dtype or p.is_neg()):
                put(p, q)

    def _narrow(self, wide: State, param: Tensor) -> None:
        """Stores what the step has left in a parameter's state."""
        into, storages = self._states_of_user[param], self._storages[param]
        kept = set(wide).union(*(entries_of(name) for name in wide if name in storages))
        if isinstance(storages[PARAM], Storage):
            kept |= MASTERS
        for key in into.keys() - kept:  # what the step dropped
            del into[key]
        vectors = self._algorithm_of(param).vectors
        dtype = dtype_of_vectors(self._group_of[param], param, into, vectors)
        for key, value in wide.items():
            old, storage = into.get(key), storages.get(key)
            storage = dtype if key in vectors else storage
            if isinstance(storage, Storage):
                write(key, storage, into, param, value, self._random(key, storage, param))
            elif storage is not None and getattr(old, "dtype", storage) != storage:
                into[key] = value.to(storage)
            elif isinstance(old, Tensor) and (key != "step" or old.dtype == value.dtype):
                if old is not value:
                    put(old, value)
            elif isinstance(value, Tensor) and self._is_per_element(key, value):
                into[key] = value.to(storage or param.dtype)
            else:
                into[key] = value
            if storage is not None and key in into:
                into.pop(key + CODES, None)
                into.pop(key + SCALES, None)

    def _random(self, name: str, storage: AnyStorage, param: Tensor) -> Tensor | None:
        """The random bits of a slot, as the kernels draw them."""
        if not is_random(storage):
            return None
        groups = self._inputs.groups
        group = self._group_of[param]
        number = next(i for i, p in enumerate(p for g in groups for p in g["params"]) if p is param)
        held = self._states[self._shown[param]]
        step: Any = held["step"] if "step" in held else self._counters_apart[param]
        draw = Draw(
            Options.of(group).seed, int(min(float(step), MOST_STEPS)), place_of(param, number)
        )
        streams = {PARAM: PARAM_SLOT, SLOW_WEIGHTS: SLOW_STREAM, EMA_WEIGHTS: AVERAGE_STREAM}
        streams |= {
            n: FIRST_STATE + j for j, n in enumerate(self._algorithm_of(param).states_of(group))
        }
        part = local(param)
        return draw.bits(streams[name], part.numel(), part.device)

    def _is_per_element(self, key: str, value: Tensor) -> bool:
        """Whether an entry is kept in the parameter's dtype: not counters, products, averages."""
        if key in ("step", EMA_WEIGHTS, *self._algorithm.numbers):
            return False
        return bool(self._algorithm.rule) or value.dim() > 0


def _compute_dtype(param: Tensor) -> torch.dtype:
    """What a step is computed in."""
    return torch.float32 if param.dtype in SIXTEEN_BIT else param.dtype
