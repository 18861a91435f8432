"""Averaged weights in the place of the parameters, for as long as a `with` lasts."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from spectramind_fused.multi_tensor import has_memory, overlaps_itself
from spectramind_fused.stepping.algorithm import Group
from spectramind_fused.stepping.options import EMA_DECAY
from spectramind_fused.stepping.refusals import check_memory
from spectramind_fused.stepping.storage import EMA_WEIGHTS


@contextmanager
def averaged(groups: list[Group], states: MutableMapping[Tensor, dict[str, Any]]) -> Iterator[None]:
    """Copies the averages into the parameters, and the parameters back at the end.

    Args:
        groups: an optimizer's.
        states: likewise.

    Raises:
        ValueError: an average has another shape than its parameter; nothing is changed then.
        RuntimeError: one of them has no memory; likewise.
    """
    pairs = [
        (p, states[p][EMA_WEIGHTS])
        for group in groups
        for p in (group["params"] if group.get(EMA_DECAY) is not None else ())
        if EMA_WEIGHTS in states.get(p, {})
    ]
    for p, average in pairs:
        if average.shape != p.shape:
            raise ValueError(
                f"The average of shape {tuple(average.shape)} does not fit its parameter of shape "
                f"{tuple(p.shape)}: delete {EMA_WEIGHTS!r} from its state."
            )
        check_memory("The average", average)
        check_memory("A parameter", p)
    trained = [(p, p.detach().clone()) for p, _ in pairs]
    try:
        for p, average in pairs:
            p.detach().copy_(average)
        yield
    finally:
        failed = [error for p, weights in trained if (error := _put_back(p, weights))]
        if failed:
            raise failed[0]


def _put_back(param: Tensor, weights: Tensor) -> Exception | None:
    """Copies the weights into the parameter's memory, or replaces memory that cannot hold them.

    Returns:
        The error, or None. It is not raised here, so that the other parameters get theirs back.
    """
    try:
        if param.shape == weights.shape and not overlaps_itself(param) and has_memory(param):
            param.detach().copy_(weights)
        else:
            param.data = weights
    except Exception as error:
        return error
    return None
