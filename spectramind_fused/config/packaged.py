"""Where our configs lie; imports nothing."""

from __future__ import annotations

from pathlib import Path


def packaged_configs() -> Path:
    """In the wheel, or beside the package in a source tree."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
