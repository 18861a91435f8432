"""Overrides as they are typed; imports nothing but the standard library."""

from __future__ import annotations

import re


def forced(override: str) -> str:
    """Lets a dotted override set a key that its YAML leaves out: our checks know which exist."""
    dotted = re.match(r"[A-Za-z_]\w*\.[^=]+=", override)
    open_ended = re.match(r"hydra\.sweeper\.\w+\.", override)
    ours = dotted and not override.startswith("hydra.")
    return f"++{override}" if ours or open_ended else override
