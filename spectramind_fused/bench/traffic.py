"""Bytes that a step moves: by formula for our kernels, counted for what torch's operators do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Written without being read.
_OVERWRITES = {"copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_"}


class Traffic(NamedTuple):
    """Bytes per parameter, or of a whole step.

    Attributes:
        read: what is loaded.
        written: what is stored.
    """

    read: float
    written: float

    @property
    def total(self) -> float:
        """Both ways."""
        return self.read + self.written

    def plus(self, other: Traffic) -> Traffic:
        """Both, one after the other."""
        return Traffic(self.read + other.read, self.written + other.written)

    def times(self, factor: float) -> Traffic:
        """So many times as much."""
        return Traffic(self.read * factor, self.written * factor)


UNKNOWN = Traffic(float("nan"), float("nan"))


# Rules that write in the place of a parameter, and do not read it.
OVERWRITING = {"muon_momentum", "MuonMomentum"}  # in Triton, in C++


def of_update(
    states: int,
    size: int = 4,
    *,
    rule: str = "",
    syncs: float = 0.0,
    ema: bool = False,
    zero_grads: bool = False,
) -> Traffic:
    """Bytes per parameter of our `update`, by the formula its kernels are tested against.

    Parameter in and out, gradient in, every state in and out; averaged weights in and out, in
    float32.

    Args:
        states: how many the rule holds.
        size: bytes of one element of the parameter, its gradient and its states.
        rule: the kernels' name of it, where it may be one of `OVERWRITING`.
        syncs: which part of the steps sync the slow weights, and read and write them.
        ema: whether averaged weights are kept.
        zero_grads: whether zeros are left in the gradient.
    """
    read = size * (2 - (rule in OVERWRITING) + states + syncs) + 4 * ema
    written = size * (1 + states + syncs + zero_grads) + 4 * ema
    return Traffic(read, written)


def of_norm(size: int = 4) -> Traffic:
    """Bytes per parameter of our `norm`: the gradient in."""
    return Traffic(size, 0)


def of_measuring(size: int = 4) -> Traffic:
    """Bytes per parameter of what comes before a step that is measured, of factored tensors.

    `squares`, the place of `norm`, reads the gradient; `measure` reads it again, and the parameter.
    What rows and columns have is left out.
    """
    return Traffic(3 * size, 0)


def counted(step: Callable[[], Any], times: int = 1) -> Traffic:
    """Bytes of one step that consists of torch's operators, as these declare them.

    Every tensor that an operator takes counts as read once, every one that it changes or makes
    as written once; views move nothing. What runs outside torch's operators is not seen.

    Args:
        step: what to run.
        times: how often, for a mean over steps that differ.
    """
    counter = _Counter()
    with counter:
        for _ in range(times):
            step()
    return counter.traffic.times(1 / times)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic = Traffic(0, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.traffic = self.traffic.plus(_of_call(func, args, kwargs, result))
        return result


def _of_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Traffic:
    schema = func._schema
    if any(r.alias_info and not r.alias_info.is_write for r in schema.returns):
        return Traffic(0, 0)  # a view
    name = schema.name.removeprefix("aten::")
    given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    read: dict[int, Tensor] = {}
    written: dict[int, Tensor] = {}
    for argument in schema.arguments:
        changed = argument.alias_info is not None and argument.alias_info.is_write
        if name.startswith("_fused_") and argument.name == "grads":
            changed = given.get("grad_scale") is not None  # declared so, done only to unscale
        for tensor in _tensors(given.get(argument.name)):
            if not (changed and name in _OVERWRITES):
                read[id(tensor)] = tensor
            if changed:
                written[id(tensor)] = tensor
    if not any(r.alias_info for r in schema.returns):
        written |= {id(tensor): tensor for tensor in _tensors(result)}
    return Traffic(_bytes(read), _bytes(written))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _bytes(tensors: dict[int, Tensor]) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors.values()))
