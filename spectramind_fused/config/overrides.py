"""Overrides as they are typed, and their keys; imports nothing but the standard library."""

from __future__ import annotations

import re
from typing import Any


def forced(override: str) -> str:
    """Lets a dotted override set a key that its YAML leaves out: our checks know which exist."""
    dotted = re.match(r"[A-Za-z_]\w*\.[^=]+=", override)
    open_ended = re.match(r"hydra\.sweeper\.\w+\.", override)
    ours = dotted and not override.startswith("hydra.")
    return f"++{override}" if ours or open_ended else override


def flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A tree's leaves under their dotted paths."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves.update(flat(value, f"{path}{key}."))
        else:
            leaves[f"{path}{key}"] = value
    return leaves
