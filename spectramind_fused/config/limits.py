"""What a user's YAML may not do: take all memory or time, or look outside of the config."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

_LARGEST = 1_000_000  # bytes of a file
_MOST_NODES = 20_000  # of a file, aliases written out
# Resolvers that look at nothing but the config itself.
_PURE = ("oc.select", "oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values")
_LONGEST = 10_000  # bits of a whole number; Python writes none of more than 4,300 digits
_RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")


def too_large(folder: Path) -> list[str]:
    """Which YAML files of a folder and its groups would take all memory or time to read.

    They are bombs (small, and huge once they are read), large, or links to what has no end.

    Args:
        folder: where a user's configs are.
    """
    problems = []
    for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml"):  # as deep as choices are named
        for path in sorted(folder.glob(pattern)):
            if reason := _reason(path):
                problems.append(f"{path} {reason}: mend it, or take it away.")
    return problems


def _reason(path: Path) -> str:
    try:
        if not path.is_file():
            return "is no file that can be read"
        if path.stat().st_size > _LARGEST:
            return f"is larger than {_LARGEST // 1000} kB"
        content = path.read_bytes()
        content.decode()
        return _expanded(content) if b"&" in content else ""
    except UnicodeDecodeError:
        return "is not in UTF-8"
    except (OSError, yaml.YAMLError, RecursionError):
        return ""  # whoever composes it says what is wrong


def _expanded(content: bytes) -> str:
    """Counts a file's values as they are read, without making them."""
    nodes = 0
    sizes: dict[str, int] = {}  # of what an anchor names, aliases written out
    begun: list[tuple[str | None, int]] = []
    for event in yaml.parse(content, yaml.SafeLoader):
        nodes += sizes.get(event.anchor, 1) if isinstance(event, yaml.AliasEvent) else 1
        if isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, nodes))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            if anchor:
                sizes[anchor] = nodes - before + 1
        if nodes > _MOST_NODES:
            return f"stands for more than {_MOST_NODES} values"
    return ""


def of_the_environment(config: DictConfig) -> list[str]:
    """Values that are looked up outside of the config, which no record could replay.

    Args:
        config: composed, its interpolations not yet resolved, without Hydra's own section.
    """
    problems = []
    for key, value in _values(OmegaConf.to_container(config, resolve=False), ""):
        for name in _RESOLVER.findall(value) if isinstance(value, str) else ():
            if name not in _PURE:
                problems.append(
                    f"{key} is looked up by {name}: write the value itself, for a run must be "
                    "replayed from its records, and they are no place for secrets."
                )
    return problems


def too_long(config: DictConfig) -> list[str]:
    """Whole numbers that no record could hold; in base 16 a YAML may have them.

    Args:
        config: as for `of_the_environment`.
    """
    return [
        f"{key} is a number of thousands of digits: give a smaller one."
        for key, value in _values(OmegaConf.to_container(config, resolve=False), "")
        if isinstance(value, int) and value.bit_length() > _LONGEST
    ]


def _values(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value in it that is no mapping or list, by the name of its key."""
    if isinstance(value, dict):
        for inner, content in value.items():
            yield from _values(content, f"{key}.{inner}" if key else str(inner))
    elif isinstance(value, list):
        for content in value:
            yield from _values(content, key)
    else:
        yield key, value
