"""Drop-in torch.optim classes whose whole step runs in two passes over memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectramind_fused.version import __version__ as __version__

if TYPE_CHECKING:
    from spectramind_fused.config import build_optimizer as build_optimizer
    from spectramind_fused.config import build_scheduler as build_scheduler
    from spectramind_fused.optim import GradScaler as GradScaler
    from spectramind_fused.optim.registry import *  # noqa: F403  (a new class is listed there alone)


def __getattr__(name: str) -> Any:
    """Imports what is asked for: help and tab completion need no torch, optimizers no Hydra."""
    if name == "__all__":
        classes = import_module("spectramind_fused.optim.registry").__all__
        return ["GradScaler", "build_optimizer", "build_scheduler", *classes]
    if name == "optim":
        return import_module("spectramind_fused.optim")
    if name in ("build_optimizer", "build_scheduler"):
        return getattr(import_module("spectramind_fused.config"), name)
    if name.startswith(("Fused", "Grad")) and name in __getattr__("__all__"):
        return getattr(import_module("spectramind_fused.optim"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
