"""Averaged weights in the place of the parameters, for as long as a `with` lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spectramind_fused.optim.state import EMA_WEIGHTS

if TYPE_CHECKING:
    from spectramind_fused.optim.step import FusedStep


@contextmanager
def averaged(optimizer: FusedStep) -> Iterator[None]:
    """Copies the averages into the parameters, and the parameters back at the end."""
    pairs = [
        (p, optimizer.state[p][EMA_WEIGHTS])
        for group in optimizer.param_groups
        for p in (group["params"] if group["ema_decay"] is not None else ())
        if EMA_WEIGHTS in optimizer.state.get(p, {})
    ]
    trained = [p.detach().clone() for p, _ in pairs]
    optimizer._averaged = True
    try:
        for p, average in pairs:
            p.detach().copy_(average)
        yield
    finally:
        for (p, _), weights in zip(pairs, trained, strict=True):
            p.detach().copy_(weights)
        optimizer._averaged = False
