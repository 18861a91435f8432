"""Drop-in torch.optim classes whose whole step runs in two passes over memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectramind_fused.optim import (
    FusedAdam,
    FusedAdamW,
    FusedLion,
    FusedRMSprop,
    FusedSGD,
    GradScaler,
)
from spectramind_fused.version import __version__ as __version__

if TYPE_CHECKING:
    from spectramind_fused.config import build_optimizer, build_scheduler

__all__ = [
    "FusedAdam",
    "FusedAdamW",
    "FusedLion",
    "FusedRMSprop",
    "FusedSGD",
    "GradScaler",
    "build_optimizer",
    "build_scheduler",
]


def __getattr__(name: str) -> Any:
    # Hydra and OmegaConf are imported only by those who build from configs.
    if name in ("build_optimizer", "build_scheduler"):
        from spectramind_fused import config

        return getattr(config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
