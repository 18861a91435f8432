"""What is to go wrong where a GPU is only played: `PLAYED_FAULT="device time"`, for the tests."""

from __future__ import annotations

import os


def planted(phase: str) -> bool:
    """Whether something is to go wrong in a phase."""
    return phase in os.environ.get("PLAYED_FAULT", "").split()
