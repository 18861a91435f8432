"""What captured CUDA graphs replay from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import runtime
from spectramind_fused.multi_tensor.runtime import Watch
from spectramind_fused.stepping.algorithm import Group


class Captured(Protocol):
    """A plan, as far as a graph of it is concerned."""

    def memory(self) -> list[Tensor]:
        """What its kernels write to beside their tables, as it lies now."""

    def refresh_hyperparameters(self, groups: list[Group], max_norm: float | None) -> None:
        """Uploads the hyperparameters that changed."""


class _Kept(NamedTuple):
    watch: Watch
    plan: Captured
    memory: list[Tensor]


class Captures:
    """Keeps what a graph was captured from for as long as the graph may be replayed."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = []

    def keep(self, plan: Captured, devices: Iterable[torch.device]) -> None:
        """Keeps a plan for the graph that is being captured on a device, if there is one.

        If not, what belongs to graphs that are gone is let go: never in a capture, into which
        freed memory would put its events.
        """
        capturing = [device for device in devices if runtime.current.capturing(device)]
        if not capturing:
            if self._kept:
                self._kept = [kept for kept in self._kept if not kept.watch.gone()]
            return
        for watch in map(runtime.current.watch, capturing):
            if not any(kept.plan is plan and kept.watch.same(watch) for kept in self._kept):
                self._kept.append(_Kept(watch, plan, plan.memory()))

    def plans(self) -> list[Captured]:
        """Those that a graph may still replay."""
        return list({id(kept.plan): kept.plan for kept in self._kept}.values())
