"""Whether the ranks that sum a norm take the same step: said in the norm's own all-reduce.

Beside the two numbers of the norm each rank sends a few more: a 1, whether it refuses the step, and
a checksum of each thing that must be the same on all. Where it is, the sum over ranks is a rank's
own number times the sum of the 1s.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from contextlib import suppress
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import runtime
from spectramind_fused.stepping.algorithm import Group
from spectramind_fused.stepping.inputs import GRAD, StepInputs
from spectramind_fused.stepping.shards import Sharding, local

# How a step is computed, which may be another way on each rank.
_FORMS = ("foreach", "fused", "capturable", "differentiable")
_PARAMETERS, _GRADIENTS, _OPTIONS = range(3)  # of what checksums are sent
_Asked = tuple[bool, bool, bool]
_WORDS = 3 + 3  # before them: a 1, whether it refuses, and then its number


class Agreement:
    """What one rank says about its step, and what it makes of the sums over all.

    Where everything is on CPUs, it is said and read at every step. To read it from a GPU the host
    would have to wait, so there a rank speaks and reads only at a step that it has made a plan for,
    and compares itself with those that do so at the same step.
    """

    def __init__(self, everyone: list[Tensor], shardings: list[Sharding], group: Any) -> None:
        """Notes whose parameters are split how.

        Args:
            everyone: all parameters of the optimizer.
            shardings: over which their norm is summed, gradients' own ones included.
            group: the process group whose other ranks hold other parameters, or None.
        """
        self._every_step = on_cpu(everyone, group)
        self._count = len(shardings)
        self._params = {
            sharding: [p for p in everyone if Sharding.of(p) == sharding]
            for sharding in shardings
            if sharding.mesh is not None
        }
        self._sent: dict[Sharding | None, tuple[bytes, _Asked, list[float], Tensor]] = {}
        self._fixed: dict[Sharding | None, tuple[float, list[bool]]] = {}
        self._silent: Tensor | None = None
        self._reads = True

    def say(
        self, sums: Tensor, sharding: Sharding | None, inputs: StepInputs, objects: bool
    ) -> Tensor:
        """What this rank sends: its sums, and what it says.

        Args:
            sums: its part of the norm.
            sharding: of the parameters whose norm it is; None for the ranks of `norm_group`.
            inputs: what this step brings.
            objects: it heard in an earlier sum that this step is not to be taken. The ranks of
                this sum need not have been part of that one.
        """
        if self._silent is None:  # before a CUDA graph is captured
            self._silent = torch.zeros(_WORDS, dtype=torch.float64, device=sums.device)
        words = self._silent
        if self._listens(sums):
            words = words.new_tensor(_refusal()) if objects else self._words(sharding, inputs)
        return torch.cat([sums, words.to(sums.device)])

    def _listens(self, sums: Tensor) -> bool:
        if self._every_step or not self._reads:
            return self._every_step
        return not (runtime.current.serves(sums.device) and runtime.current.capturing(sums.device))

    def _words(self, sharding: Sharding | None, inputs: StepInputs) -> Tensor:
        params = self._params[sharding] if sharding else []
        has_grad = bytes(grad is not None for grad in map(GRAD, params))
        seen, asked = self._sent.get(sharding), _asked(inputs)
        if seen is None or not inputs.settled or seen[:2] != (has_grad, asked):
            if sharding not in self._fixed:  # a plan is made anew where these change
                held = set(params)
                having = [not held.isdisjoint(group["params"]) for group in inputs.groups]
                structure = self._structure(params, inputs.groups) if sharding else 0.0
                self._fixed[sharding] = structure, having
            structure, having = self._fixed[sharding]
            groups = list(compress(inputs.groups, having))
            mine = [structure, _checksum(has_grad), _options(groups, inputs)]
            assert self._silent is not None
            words = self._silent.new_tensor([1, 0, 0, *mine])
            self._sent[sharding] = seen = has_grad, asked, mine, words
        return seen[3]

    def _structure(self, params: list[Tensor], groups: list[Group]) -> float:
        number_of = {p: i for i, group in enumerate(groups) for p in group["params"]}
        numbers: dict[int, int] = {}
        of_params = [
            (
                tuple(p.shape),
                p.dtype,
                p.placements,  # type: ignore[attr-defined]
                numbers.setdefault(number_of[p], len(numbers)),
            )
            for p in params
        ]
        return _checksum((self._count, of_params))

    def heard(self, sums: Tensor, sharding: Sharding | None) -> str | None:
        """What the ranks say together; None where they agree, or nobody looks.

        Raises:
            RuntimeError: their parameters are not the same. Then they need not have the same sums
                still to take, so none is waited for.
        """
        if not self._listens(sums):
            return None
        count, refusals, refuser, *of_all = sums[2:].tolist()
        if refusals:
            who = f"Rank {refuser:.0f}" if refusals == 1 else f"{refusals:.0f} other ranks"
            return (
                f"{who} refused this step, for a reason that its own error says. Nothing has moved "
                "on any rank that shares the norm of the gradients: mend it there, and step again."
            )
        has_grad, _, mine, _ = self._sent[sharding]
        differs = [count * own != of for own, of in zip(mine, of_all, strict=True)]
        if differs[_PARAMETERS]:
            raise RuntimeError(
                "The ranks do not have the same parameters: their number, order, shapes, dtypes, "
                f"groups or how they are split differ ({len(has_grad)} are split on this one). "
                "Build the optimizer alike on all ranks. Nothing has moved."
            )
        if differs[_GRADIENTS]:
            return (
                "Not the same parameters have a gradient on all ranks: on this one it is "
                f"{sum(has_grad)} of the {len(has_grad)} that are split. Freeze the same ones "
                "everywhere, and give one that a rank has not used zeros for its gradient. "
                "Nothing has moved."
            )
        if differs[_OPTIONS]:
            return (
                "The ranks do not step with the same options (one of their param_groups, such as "
                "lr, or clip_grad_norm, zero_grads or a GradScaler): set the same on all. Nothing "
                "has moved."
            )
        return None

    def end(self) -> None:
        """Everything has been read that this plan's step needs."""
        self._reads = False


def refuse(groups: list[Group], group: Any) -> None:
    """Takes this rank's part in the sums of a step that it cannot take, so that no other waits.

    Where a GPU takes part the others would not look, so they are left to wait.

    Args:
        groups: the optimizer's.
        group: as `norm_group`.
    """
    everyone = [p for each in groups for p in each["params"]]
    grads = [p.grad for p in everyone]
    shardings = shardings_of(everyone, [grad for grad in grads if grad is not None])
    if (group is None and all(s.mesh is None for s in shardings)) or not on_cpu(everyone, group):
        return
    said = torch.tensor([0, 0, *_refusal()], dtype=torch.float64, device="cpu")
    with suppress(RuntimeError):  # another rank is gone; this one has its own error to tell
        for sharding in shardings:
            sharding.total(said)
        if group is not None:
            torch.distributed.all_reduce(said, group=group_of(group))


def shardings_of(everyone: Iterable[Any], grads: Iterable[Any]) -> list[Sharding]:
    """How an optimizer's tensors are split, in the order in which every rank sums."""
    return list(dict.fromkeys([*map(Sharding.of, everyone), *map(Sharding.of, grads)]))


def group_of(group: Any) -> Any:
    """The process group that `norm_group` names."""
    return torch.distributed.group.WORLD if group == "world" else group


def on_cpu(everyone: list[Tensor], group: Any) -> bool:
    """Whether what the ranks say to each other lies on CPUs."""
    if group is not None and torch.distributed.get_backend(group_of(group)) == "nccl":
        return False
    return all(local(p).device.type == "cpu" for p in everyone)


def _options(groups: list[Group], inputs: StepInputs) -> float:
    """Of the groups that have some of the parameters, and of the step."""
    names = sorted(inputs.attributes["defaults"].keys() - set(_FORMS))
    of_groups = [[_value(group.get(name)) for name in names] for group in groups]
    return _checksum((of_groups, _value(inputs.max_norm), _asked(inputs)))


def _asked(inputs: StepInputs) -> _Asked:
    """What `inputs.settled` does not speak of."""
    scaling = inputs.scaling
    return inputs.zero_grads, scaling.skip_nonfinite, scaling.grad_scale is not None


def _refusal() -> list[float]:
    """The words of a rank that refuses the step: no 1, no checksums."""
    return [0, 1, torch.distributed.get_rank(), 0, 0, 0]


def _value(option: Any) -> Any:
    """An option in words that are the same in every process; nothing of one that is on a GPU."""
    if isinstance(option, (tuple, list)):
        return tuple(map(_value, option))
    if isinstance(option, Tensor):
        return float(option) if option.numel() == 1 and option.device.type == "cpu" else None
    return option if option is None or isinstance(option, (str, torch.dtype)) else float(option)


def _checksum(value: Any) -> float:
    """Of 32 bits: a sum over two million ranks is exact in float64."""
    return float(zlib.crc32(value if isinstance(value, bytes) else repr(value).encode()))
