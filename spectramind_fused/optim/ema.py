"""Averaged weights in the place of the parameters, for as long as a `with` lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from spectramind_fused.multi_tensor import has_memory, overlaps_itself
from spectramind_fused.optim.refusals import check_memory
from spectramind_fused.optim.state import EMA_WEIGHTS

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep


@contextmanager
def averaged(optimizer: FusedStep) -> Iterator[None]:
    """Copies the averages into the parameters, and the parameters back at the end.

    Raises:
        ValueError: an average has another shape than its parameter; nothing is changed then.
        RuntimeError: one of them has no memory; likewise.
    """
    pairs = [
        (p, optimizer.state[p][EMA_WEIGHTS])
        for group in optimizer.param_groups
        for p in (group["params"] if group["ema_decay"] is not None else ())
        if EMA_WEIGHTS in optimizer.state.get(p, {})
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
    optimizer._averaged = True
    try:
        for p, average in pairs:
            p.detach().copy_(average)
        yield
    finally:
        optimizer._averaged = False
        failed = [error for p, weights in trained if (error := _put_back(p, weights))]
        if failed:
            raise failed[0]


def _put_back(param: Tensor, weights: Tensor) -> Exception | None:
    """Where the parameter still has its shape its memory stays, cast and moved as it may be.

    Returns:
        Why the weights cannot be put back, or None: the other parameters must have theirs.
    """
    try:
        if param.shape == weights.shape and not overlaps_itself(param) and has_memory(param):
            param.detach().copy_(weights)
        else:
            param.data = weights
    except Exception as error:
        return error
    return None
