"""What captured CUDA graphs replay from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from spectramind_fused.multi_tensor import runtime
from spectramind_fused.multi_tensor.runtime import Watch


class Captures:
    """Keeps what a graph was captured from for as long as the graph may be replayed."""

    def __init__(self) -> None:
        self._kept: list[tuple[Watch, Any]] = []

    def keep(self, thing: Any, devices: Iterable[torch.device]) -> bool:
        """Keeps `thing` for the graph that is being captured on a device, if there is one.

        Returns:
            Whether there is.
        """
        capturing = [device for device in devices if runtime.current.capturing(device)]
        if capturing:
            self.let_go()
        for watch in map(runtime.current.watch, capturing):
            known = [other for other, kept in self._kept if kept is thing]
            if watch not in known and (watch.capture or not known):
                self._kept.append((watch, thing))
        return bool(capturing)

    def let_go(self) -> None:
        """Forgets what belongs to graphs that are gone."""
        self._kept = [held for held in self._kept if not held[0].gone()]
