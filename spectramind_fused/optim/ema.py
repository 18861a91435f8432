"""Averaged weights in the place of the parameters, for as long as a `with` lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectramind_fused.optim.state import EMA_WEIGHTS

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep


@contextmanager
def averaged(optimizer: FusedStep) -> Iterator[None]:
    """Copies the averages into the parameters, and the parameters back at the end.

    Raises:
        ValueError: an average has another shape than its parameter; nothing is changed then.
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
    trained = [(p, p.detach().clone()) for p, _ in pairs]
    optimizer._averaged = True
    try:
        for p, average in pairs:
            p.detach().copy_(average)
        yield
    finally:
        optimizer._averaged = False
        for p, weights in trained:
            _put_back(p, weights)


def _put_back(param: Tensor, weights: Tensor) -> None:
    """Where the parameter still has its shape its memory stays, cast and moved as it may be."""
    with torch.no_grad():
        if param.shape == weights.shape:
            param.detach().copy_(weights)
        else:
            param.data = weights
