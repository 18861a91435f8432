"""Parameters that a plan covers while they have no gradient.

They stay in the tables, and a step passes over them: so a step with other participants needs no
other plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import is_plain
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.backends import Backends
from spectramind_fused.stepping.inputs import Members, Participants, StepInputs
from spectramind_fused.stepping.refusals import check_param, check_state
from spectramind_fused.stepping.shards import local, same_sharding
from spectramind_fused.stepping.state import (
    counter_dtype,
    extras,
    keeps_counter,
    needs_wide_counters,
    unused,
)
from spectramind_fused.stepping.storage import PARAM, in_place, storages_of
from spectramind_fused.stepping.vectors import vectors_in_place


class Like(NamedTuple):
    """How a gradient was, for a step that finds none.

    Attributes:
        shape: of this rank's part, as the others.
        stride: likewise.
        dtype: likewise.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def stand_in(self, device: torch.device) -> Tensor:
        """A tensor that lies like it, without memory."""
        pairs = zip(self.shape, self.stride, strict=True)
        span = 1 + sum((size - 1) * stride for size, stride in pairs) if self.shape.numel() else 0
        zeros: Tensor = torch._efficientzerotensor((span,), dtype=self.dtype, device=device)  # type: ignore[attr-defined]
        return zeros.as_strided(self.shape, self.stride)


def likes_of(members: Members) -> dict[Tensor, Like]:
    """How the gradients of a plan's members are; of those that a later plan may cover."""
    rows = zip(members.params, members.grads, members.local_grads, strict=True)
    return {
        param: Like(part.shape, part.stride(), part.dtype)
        for param, grad, part in rows
        if is_plain(part) and same_sharding(grad, param)
    }


def absent(
    likes: dict[Tensor, Like],
    algorithm: Algorithm,
    backends: Backends,
    inputs: StepInputs,
    participants: Participants,
) -> dict[Tensor, Tensor]:
    """Who was in a plan and has no gradient now, with what stands for it.

    Left out is who would have to be changed, or refused: it joins again with a gradient.
    """
    group_of = {p: group for group in inputs.groups for p in group["params"]}
    pairs = zip(participants.everyone, participants.has_grad, strict=True)
    found = {}
    for param in (p for p, has_grad in pairs if not has_grad and p in likes):
        part, group = local(param), group_of[param]
        if part.shape == likes[param].shape and _is_ready(
            algorithm, backends, inputs, param, group
        ):
            found[param] = likes[param].stand_in(part.device)
    return found


def _is_ready(
    algorithm: Algorithm, backends: Backends, inputs: StepInputs, param: Tensor, group: Group
) -> bool:
    """Whether nothing in the parameter's state has to be made, moved or dropped."""
    if not algorithm.rule:
        return True
    algorithm = algorithm.of(param, group)
    state, names = inputs.state.get(param, {}), algorithm.states_of(group)
    try:
        backends.why_eager(group, param)
        check_param(local(param))
        check_state(algorithm, state, param, group)
    except (ValueError, RuntimeError):
        return False
    storages = storages_of(algorithm, group, param, state)
    slots = (PARAM, *names, *extras(group))
    counter = state.get("step", inputs.counters.get(param))
    return (
        all(in_place(name, storages[name], state, param) for name in slots)
        and not state.keys() & unused(group)
        and isinstance(counter, Tensor)
        and ("step" in state) == keeps_counter(algorithm, group)
        and counter.dtype == counter_dtype(counter, needs_wide_counters(inputs.groups))
        and all(_is_number(state.get(name), param) for name in algorithm.numbers)
        and vectors_in_place(algorithm, state, param, group)
    )


def _is_number(number: Any, param: Tensor) -> bool:
    """Whether the kernels can move it where it is."""
    if not isinstance(number, Tensor) or number.device != param.device or number.is_neg():
        return False
    return number.dtype in (torch.float32, torch.float64)


def with_stand_ins(members: Members, absent: dict[Tensor, Tensor]) -> Members:
    """The members, with something in the place of each gradient that is not there."""
    if not absent:
        return members
    return members._replace(
        grads=list(_wholes(members, absent)),
        local_grads=[
            absent[param] if part is None else part
            for param, part in zip(members.params, members.local_grads, strict=True)
        ],
    )


def _wholes(members: Members, absent: dict[Tensor, Tensor]) -> Iterator[Any]:
    """Of what is split only the sharding matters here: that of its parameter."""
    for param, part, grad in zip(members.params, members.local_params, members.grads, strict=True):
        if grad is not None:
            yield grad
        else:
            yield absent[param] if part is param else param
