"""Drop-in torch.optim classes whose whole step runs in two passes over memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectramind_fused.optim import GradScaler, registry
from spectramind_fused.optim.registry import *  # noqa: F403  (a new class is listed there alone)
from spectramind_fused.version import __version__ as __version__

if TYPE_CHECKING:
    from spectramind_fused.config import build_optimizer, build_scheduler

__all__ = ["GradScaler", "build_optimizer", "build_scheduler"]
__all__ += registry.__all__


def __getattr__(name: str) -> Any:
    # Hydra and OmegaConf are imported only by those who build from configs.
    if name in ("build_optimizer", "build_scheduler"):
        from spectramind_fused import config

        return getattr(config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
