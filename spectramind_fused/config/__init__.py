"""From the config contract to an optimizer, its schedule and its records."""

from spectramind_fused.config.factory import build_optimizer, build_scheduler
from spectramind_fused.config.schema import ConfigError

__all__ = ["ConfigError", "build_optimizer", "build_scheduler"]
