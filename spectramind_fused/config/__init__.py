"""From the config contract to an optimizer, its schedule and its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectramind_fused.config.check import ConfigError

if TYPE_CHECKING:
    from spectramind_fused.config.factory import build_optimizer, build_scheduler

__all__ = ["ConfigError", "build_optimizer", "build_scheduler"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imports torch, which tab completion does without
        from spectramind_fused.config import factory

        return getattr(factory, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
